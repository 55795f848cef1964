// The clip's field: it takes any video and picture, dropped and pasted too, and what this browser cannot play it shows
// by a preview that the server makes.
// Python appends the call `preview(element, props, trigger, watch)` and hands this text to gr.HTML as its js_on_load.

function preview(element, props, trigger, watch) {
  const TAKEN = "video/*,.mkv,image/gif,image/webp,image/png,image/jpeg";
  const field = () => document.querySelector("#clip input[type=file]");
  const isClip = (node) => node instanceof HTMLVideoElement && !node.srcObject && node.matches("#clip video");
  const line = Object.assign(document.createElement("p"), { className: "fm-note", hidden: true });
  line.setAttribute("role", "status");
  (element.querySelector(".fm-preview") ?? element).append(line);
  let asked = 0, unplayed = null; // how often, and the player that waits for the answer

  /** Gradio's field takes only what is called a video; whether it is one the server tells. */
  function carried(file) {
    const alone = new DataTransfer();
    alone.items.add(file.type.startsWith("video/") ? file : new File([file], file.name, { type: "video/any" }));
    return alone;
  }
  function tell(text) {
    line.textContent = text;
    line.hidden = !text;
  }
  function ask(video) {
    if (video.dataset.preview) return tell("This browser cannot play the preview either. The edit works.");
    unplayed = video;
    tell("A preview for this browser is being made…");
    trigger("unplayable", { asked: ++asked });
  }

  document.addEventListener("click", ({ target }) => {
    if (target === field()) target.accept = TAKEN; // as it opens the choice of files
  }, true);
  document.addEventListener("change", ({ target }) => {
    if (target === field() && target.files.length) target.files = carried(target.files[0]).files;
  }, true);
  document.addEventListener("drop", (event) => {
    const [file] = event.dataTransfer?.files ?? [];
    if (!file || file.type.startsWith("video/") || !field()?.parentNode.contains(event.target)) return;
    event.preventDefault();
    event.stopPropagation();
    event.target.dispatchEvent(new DragEvent("drop", { dataTransfer: carried(file), bubbles: true, cancelable: true }));
  }, true);
  document.onpaste = async ({ clipboardData }) => {
    const kinds = clipboardData.types.includes("text/plain") ? ["video/"] : ["video/", "image/"]; // text may come with its picture
    const file = Array.from(clipboardData.files).find(({ type }) => kinds.some((kind) => type.startsWith(kind)));
    if (!file) return;
    // a clip or the camera has the place: make room
    if (!field()) document.querySelector("#clip :is([aria-label=Clear], [aria-label='Upload file'])")?.click();
    for (let tries = 0; !field() && tries < 60; tries++) await new Promise(requestAnimationFrame);
    if (!field()) return;
    field().files = carried(file).files;
    field().dispatchEvent(new Event("change", { bubbles: true }));
  };

  document.addEventListener("loadstart", ({ target }) => {
    if (isClip(target) && !target.dataset.preview) tell("");
  }, true);
  document.addEventListener("error", (event) => {
    if (!isClip(event.target)) return;
    event.stopPropagation(); // Gradio would raise an alert
    ask(event.target);
  }, true);
  document.addEventListener("loadedmetadata", ({ target }) => {
    if (isClip(target) && !target.videoWidth) ask(target); // its sound alone can be played
  }, true);
  watch("value", () => {
    const made = props.value;
    if (!made) return tell("");
    if (made.asked !== asked || !unplayed?.isConnected) return;
    tell(made.note);
    if (!made.video) return;
    unplayed.dataset.preview = "1";
    unplayed.src = made.video.url;
  });
}
