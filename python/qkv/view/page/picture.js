// A vision model's weights over its image: how much the query, at first the class token, looks at each patch.

let image = null, imageOf = '', pictureFrame = null;

function special() {
  return state.map.cols - state.map.picture.rows * state.map.picture.columns;
}

function showPicture() {
  const { map } = state;
  byId('picture-view').hidden = state.view !== 'picture';
  if (state.view !== 'picture') return;
  if (imageOf !== map.picture.url) {
    imageOf = map.picture.url;
    image = new Image();
    image.addEventListener('load', () => change({}));
    image.src = imageOf;
  }
  const { rows, columns } = map.picture, first = special(), at = query(), weights = shownWeights();
  const width = byId('picture-view').clientWidth, height = Math.max(280, window.innerHeight - 300);
  const ratio = image.naturalWidth ? image.naturalHeight / image.naturalWidth : rows / columns;
  const w = Math.floor(Math.min(width - 4, height / ratio)), h = Math.floor(w * ratio);
  const context = sized(byId('picture'), w + 4, h + 4);
  pictureFrame = { w, h };
  if (image.complete && image.naturalWidth) {
    context.imageSmoothingEnabled = image.naturalWidth > w;
    context.drawImage(image, 2, 2, w, h);
  }
  let most = 0;
  for (let i = first; i < map.cols; i++) most = Math.max(most, weights[at * map.cols + i]);
  most = state.scale === 'absolute' ? 1 : most || 1;
  context.fillStyle = '#05070c'; // what is not looked at goes dark
  for (let i = 0; i < rows * columns; i++) {
    context.globalAlpha = 0.86 * (1 - Math.sqrt(weights[at * map.cols + first + i] / most));
    const [x, y] = [Math.round(((i % columns) * w) / columns), Math.round((Math.floor(i / columns) * h) / rows)];
    const [x1, y1] = [Math.round((((i % columns) + 1) * w) / columns), Math.round(((Math.floor(i / columns) + 1) * h) / rows)];
    context.fillRect(2 + x, 2 + y, x1 - x, y1 - y);
  }
  context.globalAlpha = 1;
  outline(context, at - first, '#ffb454', 2.5);
  if (state.key !== null) outline(context, state.key - first, '#ffffff', 2);
  const chips = byId('specials');
  if (chips.childElementCount !== first) {
    chips.replaceChildren(...Array.from({ length: first }, (_, i) => {
      const chip = document.createElement('button');
      chip.type = 'button';
      chip.className = 'chip';
      chip.addEventListener('click', () => change({ query: i, held: true }));
      return chip;
    }));
  }
  [...chips.children].forEach((chip, i) => {
    chip.textContent = `${readable(map.keys[i])} looks`;
    chip.setAttribute('aria-pressed', String(i === at));
  });
  byId('picture').setAttribute('aria-label', `${shownTitle()}, ${readable(map.queries[at])} over ${rows} by ${columns} patches`);
}

function outline(context, patch, colour, width) {
  const { rows, columns } = state.map.picture, { w, h } = pictureFrame;
  if (patch < 0 || patch >= rows * columns) return;
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.strokeRect(2 + ((patch % columns) * w) / columns, 2 + (Math.floor(patch / columns) * h) / rows, w / columns, h / rows);
}

function startPicture() {
  const canvas = byId('picture');
  const patchAt = (event) => {
    const box = canvas.getBoundingClientRect(), { rows, columns } = state.map.picture;
    const column = Math.floor(((event.clientX - box.left - 2) * columns) / pictureFrame.w);
    const row = Math.floor(((event.clientY - box.top - 2) * rows) / pictureFrame.h);
    return column < 0 || row < 0 || column >= columns || row >= rows ? null : special() + row * columns + column;
  };
  canvas.addEventListener('pointermove', (event) => {
    const key = patchAt(event);
    change({ key });
    if (key === null) byId('tip').hidden = true;
    else tip(event, query(), key);
  });
  canvas.addEventListener('pointerleave', () => {
    byId('tip').hidden = true;
    change({ key: null });
  });
  canvas.addEventListener('click', (event) => {
    const patch = patchAt(event);
    if (patch !== null) hold(patch);
  });
  canvas.addEventListener('keydown', (event) => {
    const { columns } = state.map.picture, first = special(), moves = { ArrowUp: -columns, ArrowDown: columns, ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in moves) {
      const key = state.key === null ? first : state.key + moves[event.key];
      if (key >= first && key < state.map.cols) change({ key });
    } else if (event.key === 'Enter' || event.key === ' ') hold(state.key ?? query());
    else if (event.key === 'Escape') change({ held: false, query: null, key: null });
    else return;
    event.preventDefault();
  });
  listeners.push(showPicture);
}
