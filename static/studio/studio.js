// The studio: the three clips in step, and an explorer of the word maps that a mask is made of.
// Python joins the files of this folder, appends the call `studio(element, props, trigger, watch)` and hands the text to
// gr.HTML as its js_on_load.
// A cell is [s, k]: the indexes of a site and of a timestep. Parts hear of a change by its name: see `session`.

const FETCHED = 12, AHEAD = 2 ** 27; // words whose maps are fetched before they are asked for, and bytes of these
const HINT = "Click a word to see its maps. Outlined: the edited word.";

function studio(element, props, trigger, watch) {
  let shown = { close() {} };
  const open = () => {
    // the page's value is a reactive proxy, slow to read in loops: a plain copy
    const value = props.value && JSON.parse(JSON.stringify(props.value));
    if (value?.answer) return shown.answer?.(value.answer);
    if (value && value.run === shown.run && shown.complete(value)) return; // the same edit, its reconstruction there now
    shown.close();
    for (const key of ["ready", "cell", "frame", "words"]) delete element.dataset[key];
    const root = element.querySelector(".fm-studio") ?? element.appendChild(el("div", { className: "fm-studio" }));
    shown = value ? session(element, root, value, trigger) : empty(root);
  };
  watch("value", open);
  open();
}

function empty(root) {
  delete root.dataset.size;
  root.replaceChildren(el("div", { className: "fm-quiet" }, "The players and the attention explorer appear here after an edit."));
  return { close() {} };
}

/** One edit on the page: what is chosen, the parts that show it, and their end; its reconstruction may come later.
 *
 * Changes: size, words, cell, frame, tau, look (how maps are drawn), overlay (what lies over the picture), pause.
 */
function session(element, root, value, trigger) {
  const { sites, timesteps } = value;
  const life = new AbortController();
  const state = {
    frame: 0, playing: false, words: [], cell: [sites.findIndex(({ name }) => name === value.cell.site), timesteps.indexOf(value.cell.timestep)], tau: value.tau,
    colours: "viridis", smooth: true, shared: false, opacity: 0.5, fill: false, used: false,
    view: "smooth", // what the inspector shows, one of VIEWS
    usable: false, // whether the cell holds a mask to edit with
  };
  const store = mapStore(value, state, life.signal);
  const act = {
    set(what, fields) {
      Object.assign(state, fields);
      for (const part of parts) part.update(what);
      publish();
    },
    words: choose,
    use(row) {
      if (!row && !state.usable) return; // the inspector says why
      const [s, k] = state.cell;
      if (!row && state.painted) return act.paint(state.painted()); // another word's mask is no field of the page
      trigger("use", { site: sites[s].name, timestep: row ? null : timesteps[k], tau: state.tau, words: state.words });
    },
    paint: (data) => trigger("paint", { ...data, words: state.words }),
    bend: (text) => trigger("bend", { text }),
    seek(text) {
      const known = value.words.findIndex(({ name }) => name === text);
      if (known >= 0) return choose([known]);
      chips.say(`Looking for “${text}”…`);
      ask({ kind: "concept", text }, (how) => chips.say(`Looking for “${text}”: ${how}.`)).then(({ maps, unseen }) => {
        const at = value.words.push({ text, name: text, maps, unseen, concept: true }) - 1;
        chips.add({ text, at });
        choose([at]);
      }, (error) => chips.say(error.message));
    },
    ask,
    track: (places) => clips.track(places),
  };
  const open = new Map(); // questions that wait for their answers, by number
  let number = Date.now() % 1e9;
  const clips = players(value, state, act, life.signal);
  const chips = wordRows(value, state, act);
  const parts = [clips, chips, matrix(value, state, store, act), inspector(value, state, store, act, clips)];
  root.replaceChildren(...parts.map((part) => part.node));
  root.tabIndex = -1; // a click anywhere in the studio gives it the keys
  root.addEventListener("keydown", clips.keys, { signal: life.signal });

  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || width === state.width) return; // hidden, or only the height changed
    root.dataset.size = width < 700 ? "narrow" : width < 1080 ? "middle" : "wide";
    act.set("size", { width, narrow: width < 700 });
  });
  observer.observe(root);
  choose(value.word.length ? value.word : [0]).then(prefetch);

  async function choose(words) {
    state.wanted = words;
    chips.say(words.every(store.has) ? HINT : `Loading the maps of ${quoted(words, value)}…`);
    const problem = await Promise.all(words.map(store.load)).then(() => null, (error) => error);
    if (life.signal.aborted || state.wanted !== words) return; // another word was chosen meanwhile
    chips.say(problem ? `The maps of ${quoted(words, value)} could not be loaded. Click the word to try again.` : HINT);
    if (!problem) act.set("words", { words });
  }

  async function prefetch() {
    let bytes = 0;
    for (const word of value.words.slice(0, FETCHED).keys()) {
      if ((bytes += value.words[word].maps.size ?? 0) > AHEAD) return;
      await new Promise((go) => (window.requestIdleCallback ? requestIdleCallback(go) : setTimeout(go, 200)));
      if (life.signal.aborted || !(await store.load(word).then(() => true, () => false))) return;
    }
  }

  /** What is drawn, for who waits on it. */
  function publish() {
    if (!state.words.length || !state.width) return;
    const [s, k] = state.cell, words = state.words.map((i) => value.words[i].text).join(",");
    Object.assign(element.dataset, { cell: `${sites[s].name}@${timesteps[k]}`, frame: state.frame + 1, words, ready: "1" });
  }

  /** Asks the server about this edit; `say` hears how far it is. A newer question ends the search for an older one. */
  function ask(question, say) {
    open.clear();
    return new Promise((resolve, reject) => {
      open.set(++number, { resolve, reject, say });
      trigger("ask", { ...question, number });
    });
  }
  function answer({ run, number, told, failed, found }) {
    const waiting = run === value.run && open.get(number);
    if (!waiting) return;
    if (told !== undefined) return waiting.say(told);
    open.delete(number);
    if (failed !== undefined) waiting.reject(new Error(failed));
    else waiting.resolve(found);
  }

  return {
    run: value.run, answer,
    complete: ({ videos }) => clips.complete(videos),
    close() {
      life.abort();
      observer.disconnect();
      clips.close();
      root.replaceChildren();
    },
  };
}
