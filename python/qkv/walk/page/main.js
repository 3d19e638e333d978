// Steps that open: a large picture with labels, which tells the value under the pointer or the arrow keys.

const PAD = 6, ROW = 18, LARGEST = 46, NUMBERS = 34;
let chosen = 0; // which of the heads
const opened = new Map(); // step -> what draws it

function element(kind, name, parent) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  parent?.append(made);
  return made;
}

// The large picture of a step, in its body.
class View {
  constructor(picture, place) {
    this.picture = picture;
    this.at = null;
    if (picture.heads > 1) this.strip = element('div', picture.pairs || picture.name(0) === 'channel' ? 'strip' : 'strip wide', place);
    this.scroll = element('div', 'scroll', place);
    this.canvas = element('canvas', '', this.scroll);
    this.said = element('p', 'said', place);
    Object.assign(this.canvas, { tabIndex: 0 });
    this.canvas.setAttribute('role', 'application');
    this.canvas.setAttribute('aria-roledescription', 'picture of numbers');
    this.canvas.addEventListener('pointermove', (event) => this.point(event));
    this.canvas.addEventListener('pointerdown', (event) => this.point(event));
    this.canvas.addEventListener('pointerleave', () => this.move(null));
    this.canvas.addEventListener('keydown', (event) => this.steer(event));
    this.makeStrip();
    this.draw();
  }

  get head() {
    return Math.min(chosen, this.picture.heads - 1);
  }

  makeStrip() {
    const { picture, strip } = this;
    if (!strip) return;
    for (let head = 0; head < picture.heads; head++) {
      const button = element('button', '', strip);
      button.type = 'button';
      button.setAttribute('aria-label', `${picture.name(0)} ${picture.label(0, head)}`);
      element('canvas', '', button);
      element('span', '', button).textContent = picture.label(0, head);
      button.addEventListener('click', () => choose(head));
    }
  }

  draw() {
    const { picture, canvas, strip, head } = this;
    if (strip) [...strip.children].forEach((button, i) => {
      button.setAttribute('aria-pressed', String(i === head));
      picture.paint(button.firstChild, i);
    });
    const width = this.scroll.clientWidth;
    if (!width) return;
    const measure = canvas.getContext('2d');
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    measure.font = font;
    const longest = (axis, count, most) => Array.from({ length: count }, (_, i) => Math.min(most, measure.measureText(picture.label(axis, i)).width)).reduce((a, b) => Math.max(a, b), 8);
    const image = picture.name(0) === 'channel';
    const left = image ? 0 : Math.ceil(longest(-2, picture.rows, width < 500 ? 64 : 110)) + 2 * PAD;
    const named = picture.pairs && data.labels[picture.name(-1)] !== undefined;
    const top = named ? Math.ceil(longest(-1, picture.columns, 90)) + 2 * PAD : 0;
    const room = width - left - PAD;
    let cell = room / picture.columns, high = ROW;
    if (picture.pairs) cell = high = Math.max(12, Math.min(LARGEST, Math.floor(cell)));
    else if (image) cell = high = Math.min(cell, 320 / picture.columns);
    const context = sized(canvas, left + cell * picture.columns + PAD, top + high * picture.rows + PAD);
    Object.assign(this, { left, top, cell, high });
    Object.assign(canvas.dataset, { left, top, cell, high });
    context.font = font;
    context.fillStyle = style('--ink');
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    if (!image) for (let row = 0; row < picture.rows; row++) context.fillText(shorten(context, picture.label(-2, row), left - 2 * PAD), left - PAD, top + (row + 0.5) * high);
    context.textAlign = 'left';
    if (named) for (let column = 0; column < picture.columns; column++) {
      context.save();
      context.translate(left + (column + 0.5) * cell, top - PAD);
      context.rotate(-Math.PI / 2);
      context.fillText(shorten(context, picture.label(-1, column), top - 2 * PAD), 0, 0);
      context.restore();
    }
    const small = picture.paint(document.createElement('canvas'), head);
    context.imageSmoothingEnabled = cell < 1;
    context.drawImage(small, left, top, cell * picture.columns, high * picture.rows);
    if (picture.pairs && cell >= NUMBERS) this.drawNumbers(context);
    if (this.at) {
      context.strokeStyle = style('--accent');
      context.lineWidth = 2;
      context.strokeRect(left + this.at[1] * cell, top + this.at[0] * high, Math.max(cell, 2), high);
    }
    const shape = `${picture.rows} by ${picture.columns}`;
    canvas.setAttribute('aria-label', `${picture.heads > 1 ? `${picture.name(0)} ${picture.label(0, head)}: ` : ''}${shape} values; arrow keys tell each`);
    this.tell();
  }

  drawNumbers(context) {
    const { picture, head, left, top, cell, high } = this;
    const image = picture.pixels(head).data;
    context.font = `${cell >= 42 ? 11 : 10}px ${getComputedStyle(document.body).fontFamily}`;
    context.textAlign = 'center';
    for (let row = 0; row < picture.rows; row++) for (let column = 0; column < picture.columns; column++) {
      const at = 4 * (row * picture.columns + column);
      const bright = 0.3 * image[at] + 0.59 * image[at + 1] + 0.11 * image[at + 2] > 140;
      context.fillStyle = bright ? '#10151f' : '#ffffff';
      const value = picture.value(head, row, column);
      const text = !Number.isFinite(value) ? figure(value) : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2);
      context.fillText(text.replace('-', '−'), left + (column + 0.5) * cell, top + (row + 0.5) * high);
    }
  }

  // What is under the pointer or the arrow keys; else how much is shown.
  tell() {
    const { picture, said, head, at } = this;
    said.replaceChildren();
    if (at) {
      said.append(`${picture.words(head, ...at)}: `);
      element('b', '', said).textContent = figure(picture.value(head, ...at));
      return;
    }
    const cut = picture.shape.map((n, axis) => [n, picture.whole[axis], picture.name(axis)]).filter(([n, whole]) => n < whole);
    const most = figure((picture.most(head) / TOP) * picture.largest), far = theme() === 'dark' ? 'brightest' : 'darkest';
    const scale = picture.signed ? `Blue is negative, orange positive; the ${far} is ±${most}.` : `The ${far} is ${most}.`;
    said.textContent = [...(picture.most(head) > 1 ? [scale] : []), ...cut.map(([n, whole, name]) => `The first ${n} of ${whole} ${name}${name === 'patch' ? 'es' : 's'}.`)].join(' ');
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - this.top) / this.high), column = Math.floor((event.clientX - box.left - this.left) / this.cell);
    const inside = row >= 0 && row < this.picture.rows && column >= 0 && column < this.picture.columns;
    this.move(inside ? [row, column] : null);
  }

  move(at) {
    if (String(at) === String(this.at)) return;
    this.at = at;
    this.draw();
  }

  steer(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === 'Escape') this.move(null);
    else if (event.key in moves) {
      const [rows, columns] = moves[event.key], [row, column] = this.at ?? [0, 0];
      const inside = (n, count) => Math.min(Math.max(n, 0), count - 1);
      this.move(this.at ? [inside(row + rows, this.picture.rows), inside(column + columns, this.picture.columns)] : [0, 0]);
      byId('live').textContent = this.said.textContent;
    } else return;
    event.preventDefault();
  }
}

function drawAll() {
  for (const view of opened.values()) view.draw();
}

function choose(head) {
  chosen = head;
  const select = byId('head');
  if (select) select.value = String(head);
  drawAll();
}

async function open(step) {
  const picture = pictures.get(Number(step.dataset.step));
  if (!picture || opened.has(step)) return;
  opened.set(step, { draw() {} }); // while it is being read
  await picture.read();
  opened.set(step, new View(picture, step.querySelector('.picture')));
}

// Small pictures in the headings, drawn when they come into sight.
function startThumbs() {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      thumb(entry.target).catch(fail);
    }
  }, { rootMargin: '300px' });
  for (const step of document.querySelectorAll('.step')) if (pictures.has(Number(step.dataset.step))) seen.observe(step);
}

const thumbs = [];

async function thumb(step) {
  const picture = await pictures.get(Number(step.dataset.step)).read();
  const canvas = document.createElement('canvas');
  canvas.className = 'thumb';
  canvas.setAttribute('aria-hidden', 'true');
  step.querySelector('summary').insertBefore(canvas, step.querySelector('.size'));
  const draw = () => picture.paint(canvas, 0);
  draw();
  thumbs.push(draw);
}

function fail(error) {
  byId('message').hidden = false;
  byId('message').textContent = typeof DecompressionStream === 'undefined' ? 'This browser cannot unpack the values; it has no DecompressionStream.' : `The values cannot be shown: ${error.message}`;
  throw error;
}

function startHeads() {
  const names = data.labels.head, most = Math.max(0, ...[...pictures.values()].filter((picture) => picture.name(0) === 'head').map((picture) => picture.heads));
  if (most < 2) return;
  const label = element('label', 'heads', byId('heads'));
  label.append('Head ');
  const select = element('select', '', label);
  select.id = 'head';
  for (let i = 0; i < most; i++) Object.assign(element('option', '', select), { value: String(i), textContent: names[i] });
  select.addEventListener('change', () => choose(Number(select.value)));
}

function showTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === 'DETAILS') at.open = true;
  target.scrollIntoView();
}

function startContents() {
  const links = [...document.querySelectorAll('nav a')];
  addEventListener('hashchange', showTarget);
  for (const link of links) link.addEventListener('click', () => setTimeout(showTarget));
  const seen = new IntersectionObserver(() => {
    const parts = [...document.querySelectorAll('.part')];
    const current = parts.filter((part) => part.getBoundingClientRect().top < innerHeight / 3).pop() ?? parts[0];
    for (const link of links) link.toggleAttribute('aria-current', link.hash === `#${current.id}`);
  }, { threshold: [0, 0.01, 0.25, 0.5, 0.75, 1] });
  for (const part of document.querySelectorAll('.part')) seen.observe(part);
}

function start() {
  themed.push(drawAll, () => thumbs.forEach((draw) => draw()));
  startTheme();
  byId('toolbar').hidden = false;
  startHeads();
  document.addEventListener('toggle', (event) => {
    if (event.target.open && event.target.classList.contains('step')) open(event.target).catch(fail);
    else if (event.target.open) drawAll();
  }, true);
  byId('expand').addEventListener('click', () => document.querySelectorAll('details').forEach((details) => (details.open = true)));
  byId('collapse').addEventListener('click', () => document.querySelectorAll('details').forEach((details) => (details.open = false)));
  new ResizeObserver(drawAll).observe(document.querySelector('main'));
  startThumbs();
  startContents();
  showTarget();
  byId('precision').textContent = `In the pictures a value is off by at most ${(1 / (2 * TOP)).toPrecision(1)} of the largest of its step; colours follow its square root. Layers and heads are numbered from 0.`;
  for (const step of document.querySelectorAll('.step[open]')) open(step).catch(fail);
  requestAnimationFrame(() => requestAnimationFrame(() => (document.body.dataset.ready = 'yes')));
}

start();
