// The elements that the studio is made of.

const ICONS = { play: "M4 2.5v11l9.5-5.5z", pause: "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z", back: "M10.5 3v10L4 8z", on: "M5.5 3v10L12 8z" };

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function button(text, title, onclick, className = "fm-button") {
  return el("button", { type: "button", className, title, onclick }, text);
}

function icon(name, title, onclick) {
  const node = el("button", { type: "button", className: "fm-button fm-icon", onclick });
  const set = (name, title) => {
    node.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
    node.title = title;
    node.setAttribute("aria-label", title);
  };
  set(name, title);
  return Object.assign(node, { set });
}

function slider(text, { min, max, step, value, show }, oninput) {
  const input = el("input", { type: "range", min, max, step, ariaLabel: text }), output = el("output");
  const set = (number) => {
    input.value = number;
    input.ariaValueText = output.textContent = show(number);
  };
  input.oninput = () => {
    set(+input.value);
    oninput(+input.value);
  };
  set(value);
  return { node: el("label", { className: "fm-slider" }, el("span", {}, text), input, output), set };
}

function choice(text, options, oninput) {
  const select = el("select", { ariaLabel: text }, ...options.map(([value, label]) => el("option", { value }, label)));
  select.onchange = () => oninput(select.value);
  return { node: el("label", { className: "fm-choice" }, el("span", {}, text), select), select };
}

function check(text, oninput) {
  const input = el("input", { type: "checkbox", onchange: () => oninput(input.checked) });
  return el("label", { className: "fm-check" }, input, text);
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const quoted = (indexes, { words }) => indexes.map((i) => `“${words[i].name}”`).join(" + ");
/** Indexes of frames as people count them: "frame 2" or "frames 1, 3 to 8". */
function framesTold(list) {
  const runs = [];
  for (const f of list) {
    if (runs.at(-1)?.[1] === f - 1) runs.at(-1)[1] = f;
    else runs.push([f, f]);
  }
  return `frame${list.length > 1 ? "s" : ""} ${runs.map(([a, b]) => (a === b ? a + 1 : `${a + 1} to ${b + 1}`)).join(", ")}`;
}
const within = (low, high, number) => Math.min(high, Math.max(low, number));
