// Colours of weights: one hue whose lightness falls (or in the dark rises) evenly, which no colour-blindness takes away.

const SCALES = {
  light: ['#ffffff', '#dbe7f6', '#9dbfe6', '#4f8cd0', '#1f57a4', '#0a2456'],
  dark: ['#131a26', '#17315a', '#1f5196', '#3f86cf', '#8cc4f5', '#f4fbff'],
};
const OF_HEADS = { // Okabe and Ito's
  light: ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b08a00', '#56b4e9', '#8a5a00', '#444444'],
  dark: ['#56b4e9', '#ff9f45', '#2fd6a3', '#e6a0c8', '#f0e442', '#8fb7ff', '#d9a86c', '#d5d5d5'],
};
const STEPS = 256;

function theme() {
  return document.documentElement.dataset.theme;
}

const tables = {};

// (256,) RGBA as 32-bit numbers
function table() {
  return (tables[theme()] ??= makeTable(SCALES[theme()]));
}

function makeTable(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: STEPS }, (_, i) => {
    const place = (i / (STEPS - 1)) * (parts.length - 1), from = Math.min(Math.floor(place), parts.length - 2);
    const [r, g, b] = [0, 1, 2].map((k) => Math.round(parts[from][k] + (parts[from + 1][k] - parts[from][k]) * (place - from)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

// The square root shows small weights too.
function place(weight, most) {
  return Math.min(STEPS - 1, Math.round(Math.sqrt(weight / most) * (STEPS - 1)));
}

function largest(weights) {
  let most = 0;
  for (let i = 0; i < weights.length; i++) if (weights[i] > most) most = weights[i];
  return most || 1;
}

function scaleTop(weights) {
  return state.scale === 'absolute' ? 1 : largest(weights);
}

// Paints a matrix, a pixel for each weight, or for each block of them its largest where there are more than `limit`.
function paint(canvas, weights, rows, columns, limit = Infinity) {
  const height = Math.min(rows, limit), width = Math.min(columns, limit);
  const most = scaleTop(weights), colours = table();
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  if (height === rows && width === columns) {
    for (let i = 0; i < pixels.length; i++) pixels[i] = colours[place(weights[i], most)];
  } else {
    const blocks = new Float32Array(width * height);
    for (let row = 0; row < rows; row++) {
      const to = Math.floor((row * height) / rows) * width, from = row * columns;
      for (let column = 0; column < columns; column++) {
        const at = to + Math.floor((column * width) / columns), weight = weights[from + column];
        if (weight > blocks[at]) blocks[at] = weight;
      }
    }
    for (let i = 0; i < pixels.length; i++) pixels[i] = colours[place(blocks[i], most)];
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext('2d').putImageData(image, 0, 0);
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// A canvas of so many CSS pixels, sharp on every screen.
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function shorten(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const chars = [...text];
  while (chars.length > 1 && context.measureText(chars.join('') + '…').width > width) chars.pop();
  return chars.join('') + '…';
}
