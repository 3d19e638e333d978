// Values as pictures: signed ones from blue over the paper's colour to orange, others from light to dark.

const data = JSON.parse(document.getElementById('data').textContent);
const TOP = 32766, INFINITE = 32767; // -32768: not a number
const SIGNED = {
  light: ['#0a2456', '#1f57a4', '#7fabdf', '#f4f5f8', '#f0b27a', '#c2590c', '#5e2a02'],
  dark: ['#cfe6ff', '#6fb0f0', '#2a5f9e', '#161c26', '#93521c', '#f09a4a', '#ffe6cc'],
};
const signed = {};

// (2 * STEPS - 1,) RGBA as 32-bit numbers, the middle for 0
function signedTable() {
  return (signed[theme()] ??= makeTable(SIGNED[theme()]));
}

function finite(code) {
  return Math.abs(code) <= TOP;
}

// One step's values, decoded when they are first drawn.
class Picture {
  constructor(described, block) {
    Object.assign(this, described, { block });
    const [rows, columns] = this.shape.slice(-2);
    Object.assign(this, { rows, columns, heads: this.shape.length > 2 ? this.shape[0] : 1 });
    this.pairs = this.axes[this.axes.length - 1] !== 'feature' && this.axes[this.axes.length - 1] !== 'logit' && this.axes[0] !== 'channel';
  }

  async read() {
    if (!this.codes) {
      this.codes = new Int16Array(await inflate(this.block.textContent));
      this.block.remove();
    }
    return this;
  }

  value(head, row, column) {
    const code = this.codes[(head * this.rows + row) * this.columns + column];
    return finite(code) ? (code / TOP) * this.largest : Math.abs(code) === INFINITE ? Math.sign(code) * Infinity : NaN;
  }

  // The largest of what is shown of a head; the square root shows small values too.
  most(head) {
    const size = this.rows * this.columns;
    let most = 0;
    for (let i = head * size; i < (head + 1) * size; i++) {
      const code = this.codes[i];
      if (finite(code) && Math.abs(code) > most) most = Math.abs(code);
    }
    return most || 1;
  }

  // RGBA of each value
  pixels(head, most = this.most(head)) {
    const size = this.rows * this.columns, image = new ImageData(this.columns, this.rows);
    const pixels = new Uint32Array(image.data.buffer), colours = this.signed ? signedTable() : table();
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(style('--line').slice(at, at + 2), 16));
    const masked = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    for (let i = 0; i < size; i++) {
      const code = this.codes[head * size + i];
      if (!finite(code)) pixels[i] = masked;
      else {
        const share = Math.sign(code) * Math.sqrt(Math.abs(code) / most);
        pixels[i] = colours[Math.round((this.signed ? (share + 1) / 2 : share) * (STEPS - 1))];
      }
    }
    return image;
  }

  // A pixel for each value.
  paint(canvas, head) {
    canvas.width = this.columns;
    canvas.height = this.rows;
    canvas.getContext('2d').putImageData(this.pixels(head), 0, 0);
    return canvas;
  }

  label(axis, i) {
    const name = this.axes[axis < 0 ? this.axes.length + axis : axis], names = data.labels[name];
    return names && i < names.length ? readable(names[i]) : String(i);
  }

  name(axis) {
    return this.axes[axis < 0 ? this.axes.length + axis : axis];
  }

  // What a cell is, in words.
  words(head, row, column) {
    const of = this.heads > 1 ? `${this.name(0)} ${this.label(0, head)}: ` : '';
    const from = data.labels[this.name(-2)] ? `“${this.label(-2, row)}”` : `${this.name(-2)} ${row}`;
    const to = data.labels[this.name(-1)] ? `“${this.label(-1, column)}”` : `${this.name(-1)} ${column}`;
    return `${of}${from}${this.pairs ? ' → ' : ', '}${to}`;
  }
}

function figure(value) {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value < 0 ? '−∞' : '∞';
  if (value === 0) return '0';
  return value.toPrecision(Math.abs(value) < 1e-3 ? 2 : 4).replace('-', '−');
}

const pictures = new Map(); // of a step's number
{
  const blocks = document.querySelectorAll('script.codes');
  data.pictures.forEach((described, i) => pictures.set(described.step, new Picture(described, blocks[i])));
}
