// The words' maps, and the masks that are cut from them, as numbers.

const UNIT = Float32Array.from({ length: 256 }, (_, i) => i / 255);

/**
 * The words' maps, fetched once each, and the mask in use. `state.words` are those that are read. A cell has a map for
 * every latent frame: `of_frames` says which each frame has, its own where that is left out.
 */
function mapStore({ words, sites, timesteps, frames, mask, of_frames }, state, signal) {
  const own = of_frames ?? [...Array(frames).keys()], held = own.at(-1) + 1;
  const steps = timesteps.length, used = { ...mask, bits: unpack(mask.data, frames * mask.h * mask.w) };
  const offsets = [];
  let total = 0;
  for (const { h, w } of sites) {
    offsets.push(total);
    total += steps * held * h * w;
  }
  const size = total + 4 * sites.length * steps * held;
  const pending = new Map(), ready = new Map(), measured = new Map();

  async function fetched(word) {
    const response = await fetch(words[word].maps.url, { signal });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const buffer = await inflate(await response.arrayBuffer(), size);
    if (buffer.byteLength !== size) throw new Error("The maps have another size than their sites");
    const values = new Uint8Array(buffer, 0, total), scales = new Float32Array(buffer.slice(total));
    const tops = new Float32Array(scales.length); // the largest probability of each (site, timestep, frame)
    for (let s = 0, row = 0, at = 0; s < sites.length; s++)
      for (let end = row + steps * held, area = sites[s].h * sites[s].w; row < end; row++, at += area)
        tops[row] = UNIT[largest(values.subarray(at, at + area))] * scales[row];
    ready.set(word, { values, scales, tops, top: largest(tops) });
  }

  function load(word) {
    if (!pending.has(word)) pending.set(word, fetched(word).catch((error) => { pending.delete(word); throw error; }));
    return pending.get(word);
  }

  /** One frame into `out`. Several words: each divided by its maximum over the cell's frames, then the larger counts. */
  function read([s, k], frame, out, of = state.words) {
    const area = sites[s].h * sites[s].w, first = (s * steps + k) * held, at = offsets[s] + (k * held + own[frame]) * area;
    out.fill(0, 0, area);
    for (const word of of) {
      const { values, scales, tops } = ready.get(word);
      const scale = scales[first + own[frame]] / (of.length > 1 ? largest(tops.subarray(first, first + held)) || 1 : 1);
      for (let i = 0; i < area; i++) {
        const p = UNIT[values[at + i]] * scale;
        if (p > out[i]) out[i] = p;
      }
    }
  }

  /** One frame up to a factor, and its maximum: of one word the numbers as they are kept, which need no reading. */
  function raw([s, k], frame, out) {
    const area = sites[s].h * sites[s].w, row = (s * steps + k) * held + own[frame];
    if (state.words.length > 1) {
      read([s, k], frame, out);
      return [out, largest(out.subarray(0, area))];
    }
    const { values, scales, tops } = ready.get(state.words[0]), at = offsets[s] + (k * held + own[frame]) * area;
    return [values.subarray(at, at + area), scales[row] && (255 * tops[row]) / scales[row]];
  }

  /** Every frame of a cell. */
  function maps(at, of) {
    const all = Array.from({ length: frames }, () => new Float32Array(sites[at[0]].h * sites[at[0]].w));
    all.forEach((map, frame) => read(at, frame, map, of));
    return all;
  }

  return {
    used, read, raw, load, maps,
    latent: (frame) => own[frame],
    /** The frames that have the same map as one: those of its latent frame. */
    alike: (frame) => [...own.keys()].filter((other) => own[other] === own[frame]),
    has: (word) => ready.has(word),
    measure(at, of) {
      if (of) return measure(of, sites[at[0]], used, state.tau);
      const key = `${at}/${state.words}/${state.tau}`; // the selected cell's and the pointed one's, frame after frame
      if (!measured.has(key)) {
        if (measured.size > 1) measured.delete(measured.keys().next().value);
        measured.set(key, measure(maps(at), sites[at[0]], used, state.tau));
      }
      return measured.get(key);
    },
    /** The largest value on any cell. */
    top: () => (state.words.length > 1 ? 1 : ready.get(state.words[0]).top),
  };
}

async function inflate(buffer, size) {
  const [a, b] = new Uint8Array(buffer, 0, 2);
  if (a !== 0x1f || b !== 0x8b || buffer.byteLength === size) return buffer; // the server's encoding was undone already
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** Cells of a grid's shorter side from which on maps are pooled, as in freemask/masks/candidates.py. */
const FINE = 32;

/** 3×3 maximum filter. */
function pool(map, h, w) {
  const rows = new Float32Array(map.length), out = new Float32Array(map.length);
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) rows[i] = Math.max(map[i], x ? map[i - 1] : 0, x < w - 1 ? map[i + 1] : 0);
  for (let i = 0; i < map.length; i++) out[i] = Math.max(rows[i], i >= w ? rows[i - w] : 0, i + w < map.length ? rows[i + w] : 0);
  return out;
}

/** The cell's mask at its own grid, as `extract` in freemask/masks/candidates.py cuts it, or null where a frame is flat. */
function extract(maps, h, w, tau) {
  const masks = new Uint8Array(maps.length * h * w);
  const strict = Math.fround(tau);
  for (const [frame, map] of maps.entries()) {
    const pooled = Math.min(h, w) >= FINE ? pool(map, h, w) : map;
    const top = largest(pooled);
    if (!(top > 0) || (map.length > 1 && map.every((p) => p === map[0]))) return null;
    for (let i = 0; i < map.length; i++) masks[frame * h * w + i] = Math.fround(pooled[i] / top) > strict;
  }
  return masks;
}

/** A cell's mask and its figures, by frame; IoU on the grid of the mask in use, null where an edit has none. */
function measure(maps, { h, w }, used, tau) {
  const masks = extract(maps, h, w, tau);
  if (!masks) return null;
  const area = [], iou = [], none = (used.none ??= !used.bits.includes(1));
  let flips = 0;
  for (const frame of maps.keys()) {
    const mask = masks.subarray(frame * h * w, (frame + 1) * h * w);
    area.push(mask.reduce((sum, on) => sum + on, 0) / mask.length);
    if (!none) iou.push(overlap(resized(mask, h, w, used.h, used.w), used, frame));
    if (frame) for (let i = 0; i < mask.length; i++) flips += mask[i] ^ masks[(frame - 1) * h * w + i];
  }
  const flicker = maps.length > 1 ? flips / (maps.length - 1) / (h * w) : null;
  return { masks, area, iou: none ? null : iou, flicker, mean: none ? null : iou.reduce((a, b) => a + b) / iou.length };
}

/** IoU of a mask with a frame of another on its grid. */
function overlap(mask, { bits }, frame) {
  const at = frame * mask.length;
  let both = 0, either = 0;
  for (let i = 0; i < mask.length; i++) {
    both += mask[i] & bits[at + i];
    either += mask[i] | bits[at + i];
  }
  return either ? both / either : 1;
}

/** Nearest: whole factors repeat. */
function resized(mask, h, w, toH, toW) {
  if (h === toH && w === toW) return mask;
  const out = new Uint8Array(toH * toW);
  for (let y = 0, i = 0; y < toH; y++) {
    const row = Math.floor(((y + 0.5) * h) / toH) * w;
    for (let x = 0; x < toW; x++, i++) out[i] = mask[row + Math.floor(((x + 0.5) * w) / toW)];
  }
  return out;
}

function largest(map) {
  let top = 0;
  for (let i = 0; i < map.length; i++) if (map[i] > top) top = map[i];
  return top;
}

/** numpy.unpackbits and packbits, over base64. */
function unpack(text, length) {
  const bytes = atob(text), bits = new Uint8Array(length);
  for (let i = 0; i < length; i++) bits[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return bits;
}

function pack(bits) {
  const bytes = new Uint8Array((bits.length + 7) >> 3);
  for (let i = 0; i < bits.length; i++) bytes[i >> 3] |= bits[i] << (7 - (i & 7));
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}
