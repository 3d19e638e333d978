// What is looked at, and the one function that changes it.

const state = {
  maps: [],
  map: null,
  view: 'matrix', // or lines, picture
  scale: 'relative', // to the largest weight shown; or absolute, to 1
  current: { layer: 0, column: 0 },
  pinned: [], // heads that are shown besides
  several: false, // whether a click pins
  step: null, // of generation, from 0
  query: null,
  key: null,
  held: false, // whether the query is pinned
};

const listeners = [];
let scheduled = false;

function change(values) {
  Object.assign(state, values);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    for (const listener of listeners) listener();
  });
}

const sameCell = (a, b) => a.layer === b.layer && a.column === b.column;
const isHead = (cell) => typeof cell.column === 'number';

// The cells that are shown: the current one and, if it is a head, those that are pinned.
function shownCells() {
  const others = isHead(state.current) ? state.pinned.filter((cell) => !sameCell(cell, state.current)) : [];
  return [...others, state.current];
}

let shownKey = '', shownMatrix = null;

// The weights that are shown, the mean of several heads. The array is another one whenever they are other weights.
function shownWeights() {
  const cells = shownCells();
  const key = JSON.stringify([state.maps.indexOf(state.map), cells]);
  if (key !== shownKey) {
    shownKey = key;
    shownMatrix = mean(cells.map((cell) => state.map.matrix(cell.layer, cell.column)));
  }
  return shownMatrix;
}

function shownTitle() {
  const cells = shownCells();
  if (cells.length > 1) return `Mean of ${cells.length} picked heads`;
  return state.map.title(cells[0].layer, cells[0].column);
}

// Rows and columns that are there at the step of generation that is looked at.
function extent() {
  const { map, step } = state;
  if (step === null || map.prompt === null) return { rows: map.rows, columns: map.cols };
  const rows = map.prompt + step;
  return { rows, columns: map.name === 'Cross-attention' ? map.cols : Math.min(map.cols, rows) };
}

// The query that is told of: the one looked at, at a step of generation its last, of an image the class token.
function query() {
  if (state.query !== null) return Math.min(state.query, extent().rows - 1);
  if (state.step !== null) return extent().rows - 1;
  return state.map.picture ? 0 : null;
}

function moveTo(row, key) {
  const { rows, columns } = extent();
  const values = { key: Math.max(0, Math.min(columns - 1, key)) };
  if (!state.held) values.query = Math.max(0, Math.min(rows - 1, row));
  change(values);
}

function leave() {
  byId('tip').hidden = true;
  change(state.held ? { key: null } : { query: null, key: null });
}

function hold(row) {
  if (state.held && state.query === row) change({ held: false });
  else if (row !== null) change({ held: true, query: row });
}

// Arrows, Enter and Escape, alike in all views; `across` keys and `down` queries.
function steer(event, across = 1, down = 1) {
  const at = query() ?? 0, key = state.key ?? 0;
  const moves = { ArrowUp: [-down, 0], ArrowDown: [down, 0], ArrowLeft: [0, -across], ArrowRight: [0, across] };
  if (event.key in moves) {
    const [rows, keys] = moves[event.key];
    const first = state.query === null && state.key === null;
    if (rows && state.held) change({ held: false });
    moveTo(first ? at : at + rows, first ? key : key + keys);
  } else if (event.key === 'Enter' || event.key === ' ') hold(at);
  else if (event.key === 'Escape') change({ held: false, query: null, key: null });
  else return;
  event.preventDefault();
}

function number(weight) {
  if (weight === 0) return '0';
  if (weight < 0.001) return weight.toPrecision(1);
  return weight.toFixed(page.bits === 16 ? 4 : 3);
}
