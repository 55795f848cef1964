// The part of the clip that is used: two handles over a strip of its frames.
// Python appends the call `trim(element, props, trigger, watch)` and hands this text to gr.HTML as its js_on_load.

function trim(element, props, trigger, watch) {
  const step = 0.05; // seconds of one move
  const make = (tag, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };
  const seconds = (number) => `${+number.toFixed(2)} s`;
  const root = element.querySelector(".fm-trim") ?? element.appendChild(make("div", { className: "fm-trim" }));
  const picture = make("img", { alt: "" });
  const start = make("input", { type: "range", min: 0, step, ariaLabel: "Start" });
  const end = make("input", { type: "range", min: 0, step, ariaLabel: "End" });
  const strip = make("div", { className: "fm-strip" }, picture, start, end);
  const line = make("p", { className: "fm-note" });
  const used = make("div", { className: "fm-used" });
  root.append(strip, line, used);
  let duration = 0, least = 2 * step; // seconds: of the clip, and between the handles
  let length = 0; // seconds: of the part

  /** Start and end as the handles stand; the last step of the end may reach beyond the clip. */
  const part = () => ({ start: +start.value, end: Math.min(+end.value, duration) });

  function show() {
    const { start: from, end: to } = part();
    strip.style.setProperty("--start", `${(100 * from) / duration}%`);
    strip.style.setProperty("--end", `${(100 * to) / duration}%`);
    start.ariaValueText = seconds(from);
    end.ariaValueText = seconds(to);
    const { frames, problem } = props.value;
    line.textContent = problem || `${frames} frames from ${seconds(from)} to ${seconds(to)}`;
    line.classList.toggle("bad", !!problem);
  }

  /** The first handle moves the part, as long as it is; the second one changes how long it is. */
  start.oninput = () => {
    if (duration - length < step) length = Math.max(least, Math.min(duration, end.value) - start.value); // no room to move
    start.value = Math.min(start.value, duration - length);
    end.value = +start.value + length;
    show();
  };
  end.oninput = () => {
    end.value = Math.max(end.value, least);
    if (end.value - start.value < least) start.value = end.value - least;
    length = end.value - start.value;
    show();
  };
  start.onchange = end.onchange = () => trigger("trim", part());

  function draw() {
    const value = props.value;
    root.hidden = !value;
    if (!value) return;
    duration = value.duration;
    least = Math.min(duration, Math.max(2, Math.ceil(value.frames / Math.min(60, value.rate) / step)) * step);
    picture.src = value.strip;
    start.max = end.max = Math.ceil(duration / step) * step;
    start.value = value.start;
    end.value = value.end;
    length = Math.min(duration, Math.max(least, end.value - start.value));
    used.replaceChildren(...Array.from(value.used, (src, i) => make("img", { src, alt: `Frame ${i + 1}` })));
    show();
  }
  watch("value", draw);
  draw();
}
