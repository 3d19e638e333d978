// What the pages of qkv.view and of qkv.trace have in common: light and dark, colours, canvases, tokens that can be read.

const byId = (id) => document.getElementById(id);

// One hue whose lightness falls (or in the dark rises) evenly, which no colour-blindness takes away.
const SCALES = {
  light: ['#ffffff', '#dbe7f6', '#9dbfe6', '#4f8cd0', '#1f57a4', '#0a2456'],
  dark: ['#131a26', '#17315a', '#1f5196', '#3f86cf', '#8cc4f5', '#f4fbff'],
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

const themed = []; // what is drawn anew in another theme

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  byId('theme').textContent = name === 'dark' ? 'Light' : 'Dark';
  byId('theme').setAttribute('aria-label', `Use the ${name === 'dark' ? 'light' : 'dark'} theme`);
  for (const draw of themed) draw();
}

// The theme is the system's until the button is pressed.
function startTheme() {
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  setTheme(dark.matches ? 'dark' : 'light');
  dark.addEventListener('change', () => setTheme(dark.matches ? 'dark' : 'light'));
  byId('theme').addEventListener('click', () => setTheme(theme() === 'dark' ? 'light' : 'dark'));
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

// Tokens as they can be read: what does not print is shown by a sign, and so is the
// space that sentencepiece and byte-level vocabularies have in front.
function readable(token) {
  const text = token.replace(/^[▁Ġ]/, '·').replace(/\n/g, '↵').replace(/\r/g, '␍').replace(/\t/g, '⇥').replace(/[\u0000-\u001f\u007f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g, '·');
  return text === '' ? '∅' : text.replace(/^ +$/, (spaces) => '␣'.repeat(spaces.length));
}

// Bytes that zlib compressed, from base64.
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
}
