// One head large, as a matrix: queries are rows, keys are columns.

const MOST_CELL = 48, FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
const painted = document.createElement('canvas'); // a pixel for each weight
let paintedOf = null, paintedLook = '';
let frame = null; // where the matrix stands in its canvas

function layOut(rows, columns) {
  const { map } = state, context = byId('matrix').getContext('2d');
  context.font = FONT;
  const narrow = window.innerWidth < 600;
  const width = byId('matrix-view').clientWidth, height = Math.max(320, window.innerHeight - (narrow ? 220 : 250));
  const longest = (tokens, most) => tokens.slice(0, 400).reduce((w, token) => Math.min(most, Math.max(w, context.measureText(readable(token)).width)), 10);
  const left = Math.ceil(longest(map.queries, narrow ? 74 : 120)) + 10;
  const top = Math.ceil(longest(map.keys, narrow ? 70 : 110) * 0.87) + 16; // labels lean
  const overhang = columns > 1 ? Math.ceil(top * 0.58) + 4 : 8; // of the last column's label
  const fit = Math.min((width - left - overhang - 2) / columns, Math.max(height - top, narrow ? 200 : 320) / rows);
  const cell = Math.min(MOST_CELL, Math.max(fit, columns > 400 || rows > 400 ? 0.5 : 1));
  return { left, top, cell, width: left + columns * cell + overhang, height: top + rows * cell + 4 };
}

function showMatrix() {
  byId('matrix-view').hidden = state.view !== 'matrix';
  if (state.view !== 'matrix') return;
  const { map } = state, { rows, columns } = extent(), weights = shownWeights();
  const look = `${theme()} ${state.scale}`;
  if (paintedOf !== weights || paintedLook !== look) {
    paint(painted, weights, map.rows, map.cols);
    [paintedOf, paintedLook] = [weights, look];
  }
  frame = { ...layOut(rows, columns), rows, columns };
  const canvas = byId('matrix'), context = sized(canvas, frame.width, frame.height);
  const { left, top, cell } = frame;
  context.imageSmoothingEnabled = false;
  context.drawImage(painted, 0, 0, columns, rows, left, top, columns * cell, rows * cell);
  context.strokeStyle = style('--strong-line');
  context.lineWidth = 1;
  context.strokeRect(left - 0.5, top - 0.5, columns * cell + 1, rows * cell + 1);
  drawLabels(context);
  drawCursor(context);
  Object.assign(canvas.dataset, { left, top, cell }); // where it is, for whoever drives the page
  canvas.setAttribute('aria-label', `${shownTitle()}: ${rows} queries by ${columns} keys`);
}

// How many tokens apart labels stand.
function between(cell) {
  const least = 13 / cell;
  return least <= 1 ? 1 : [2, 3, 4, 5, 10, 20, 25, 50, 100].find((n) => n >= 1.4 * least) ?? 200;
}

function drawLabels(context) {
  const { left, top, cell, rows, columns } = frame, { map } = state;
  const every = between(cell), at = query();
  context.font = FONT;
  context.textBaseline = 'middle';
  const ink = style('--ink'), soft = style('--soft'), accent = style('--accent');
  const plain = every === 1 ? ink : soft;
  context.textAlign = 'right';
  for (let row = 0; row < rows; row++) {
    const far = at === null || Math.abs(row - at) * cell >= 13;
    if (row !== at && (row % every || !far)) continue;
    context.fillStyle = row === at ? accent : plain;
    context.fillText(shorten(context, readable(map.queries[row]), left - 8), left - 6, top + (row + 0.5) * cell);
  }
  context.textAlign = 'left';
  for (let column = 0; column < columns; column++) {
    const far = state.key === null || Math.abs(column - state.key) * cell >= 13;
    if (column !== state.key && (column % every || !far)) continue;
    context.save();
    context.translate(left + (column + 0.5) * cell + 2, top - 6);
    context.rotate(-Math.PI / 3);
    context.fillStyle = column === state.key ? accent : plain;
    context.fillText(shorten(context, readable(map.keys[column]), (top - 14) / 0.87), 0, 0);
    context.restore();
  }
}

function drawCursor(context) {
  const { left, top, cell, rows, columns } = frame, at = query();
  context.strokeStyle = style('--accent');
  context.lineWidth = 1.5;
  if (at !== null) context.strokeRect(left - 0.5, top + at * cell - 0.5, columns * cell + 1, Math.max(cell, 2) + 1);
  if (state.key === null || at === null || state.key >= columns || at >= rows) return;
  context.lineWidth = 2.5;
  context.strokeRect(left + state.key * cell - 1, top + at * cell - 1, Math.max(cell, 3) + 2, Math.max(cell, 3) + 2);
}

function cellAt(event) {
  const box = byId('matrix').getBoundingClientRect();
  const key = Math.floor((event.clientX - box.left - frame.left) / frame.cell);
  const row = Math.floor((event.clientY - box.top - frame.top) / frame.cell);
  return key < 0 || row < 0 || key >= frame.columns || row >= frame.rows ? null : { row, key };
}

function startMatrix() {
  const canvas = byId('matrix');
  canvas.addEventListener('pointermove', (event) => {
    const at = cellAt(event);
    if (!at) return leave();
    moveTo(at.row, at.key);
    tip(event, state.held ? state.query : at.row, at.key);
  });
  canvas.addEventListener('pointerleave', leave);
  canvas.addEventListener('click', (event) => {
    const at = cellAt(event);
    if (at) hold(at.row);
  });
  canvas.addEventListener('keydown', (event) => steer(event));
  listeners.push(showMatrix);
}
