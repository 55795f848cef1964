// Maps and masks as pictures.

const COLOURS = {
  viridis: "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
  cividis: "00224e 1a386f 434e6c 61656f 7d7c78 9b9476 bcae6c dec958 fee838",
  magma: "000004 1d1147 51127c 832681 b73779 e75263 fc8961 fec488 fcfdbf",
  grey: "000000 ffffff",
};

// Of words beside each other; told apart by the colour-blind too (after Paul Tol's schemes).
const HUES = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#882255", "#999933", "#bbbbbb", "#332288"];

/** 256 pixels, little-endian RGBA. */
function palette(name) {
  const stops = COLOURS[name].split(" ").map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    const [r, g, b] = stops[low].map((c, n) => Math.round(c + (stops[low + 1][n] - c) * (at - low)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

/** Weights that take one side of a map from `from` to `to` samples: the mean where it shrinks, else linear or nearest. */
function taps(from, to, smooth) {
  const scale = from / to, mean = scale > 1, linear = !mean && smooth;
  const count = mean ? Math.ceil(scale) + 1 : linear ? 3 : 1;
  const index = new Int32Array(to * count), weight = new Float32Array(to * count);
  for (let i = 0; i < to; i++) {
    const low = i * scale, centre = low + scale / 2 - 0.5;
    const first = mean ? Math.floor(low) : linear ? Math.ceil(centre - 1) : Math.round(centre);
    let sum = 0;
    for (let n = 0; n < count; n++) {
      const j = first + n, shared = Math.min(j + 1, low + scale) - Math.max(j, low); // of a sample of the map and one of ours
      index[i * count + n] = Math.min(from - 1, Math.max(0, j));
      sum += weight[i * count + n] = mean ? Math.max(0, shared) : linear ? Math.max(0, 1 - Math.abs(j - centre)) : 1;
    }
    for (let n = 0; n < count; n++) weight[i * count + n] /= sum;
  }
  return { count, index, weight };
}

/** Draws maps as wide × high pixels, each divided by its maximum `top`, at an index of an image of some stride. */
function shrinker(wide, high, tallest, colours, smooth) {
  const rows = new Float32Array(tallest * wide), fits = new Map();
  const fit = (from, to) => fits.get(`${from} ${to}`) ?? fits.set(`${from} ${to}`, taps(from, to, smooth)).get(`${from} ${to}`);
  return (map, top, { h, w }, pixels, at, stride) => {
    const across = fit(w, wide), down = fit(h, high), unit = 255 / (top || 1);
    for (let y = 0; y < h; y++)
      for (let x = 0; x < wide; x++) {
        let sum = 0;
        for (let n = x * across.count, end = n + across.count; n < end; n++) sum += map[y * w + across.index[n]] * across.weight[n];
        rows[y * wide + x] = sum * unit;
      }
    for (let y = 0; y < high; y++, at += stride)
      for (let x = 0; x < wide; x++) {
        let sum = 0;
        for (let n = y * down.count, end = n + down.count; n < end; n++) sum += rows[down.index[n] * wide + x] * down.weight[n];
        pixels[at + x] = colours[Math.min(255, Math.round(sum))];
      }
  };
}

/** A mask as a small canvas of one colour, to be drawn at any size. */
function tinted(mask, h, w, colour) {
  const canvas = el("canvas", { width: w, height: h }), context = canvas.getContext("2d");
  const image = new ImageData(w, h);
  for (let i = 0; i < h * w; i++) image.data[4 * i + 3] = mask[i] ? 255 : 0;
  context.putImageData(image, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, w, h);
  return canvas;
}

/** The border between on and off cells, on a canvas of width × height. */
function outline(mask, h, w, width, height) {
  const path = new Path2D(), dx = width / w, dy = height / h;
  const on = (y, x) => y >= 0 && y < h && x >= 0 && x < w && mask[y * w + x] > 0;
  for (let y = 0; y <= h; y++)
    for (let x = 0; x <= w; x++) {
      if (on(y, x) !== on(y - 1, x)) path.moveTo(x * dx, y * dy), path.lineTo((x + 1) * dx, y * dy);
      if (on(y, x) !== on(y, x - 1)) path.moveTo(x * dx, y * dy), path.lineTo(x * dx, (y + 1) * dy);
    }
  return path;
}

const maskColours = new Map(); // by scheme: to ask for it makes the browser lay out what is new on the page
function maskColour(node) {
  const dark = document.body.classList.contains("dark");
  if (!maskColours.has(dark)) maskColours.set(dark, getComputedStyle(node).getPropertyValue("--fm-mask").trim() || "#e4572e");
  return maskColours.get(dark);
}
