// The grid of thumbnails: a row for each layer, a column for each head, their mean, and attention rollout.

const THUMBNAIL = 56; // pixels of a side, at most
let cells = []; // {layer, column, button, canvas}
let seen = null; // the observer that has thumbnails drawn when they come into sight
let gridOf = null;

let drawing = false;

// Draws what is in sight, a few thumbnails at a time, so that the page stays alive meanwhile.
function drawThumbnails() {
  if (drawing) return;
  drawing = true;
  const go = () => {
    const end = performance.now() + 12, { map } = state;
    for (const cell of cells) {
      if (!cell.visible || cell.drawn) continue;
      if (performance.now() > end) return void setTimeout(go);
      paint(cell.canvas, map.matrix(cell.layer, cell.column), map.rows, map.cols, THUMBNAIL);
      cell.drawn = true;
    }
    drawing = false;
    byId('grid').dataset.drawn = cells.filter((cell) => cell.drawn).length;
  };
  go();
}

function tracks(map) {
  const most = map.heads < 8 ? 52 : 44, own = map.columns.length - map.heads;
  return `auto repeat(${map.heads}, minmax(17px, ${most}px))` + (own ? ` minmax(42px, ${most + 5}px)`.repeat(own) : '');
}

function buildGrid() {
  const { map } = state, grid = byId('grid');
  gridOf = map;
  cells = [];
  seen?.disconnect();
  seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const cell = cells.find((item) => item.button === entry.target);
      if (cell) cell.visible = entry.isIntersecting;
    }
    drawThumbnails();
  }, { root: grid });
  grid.style.gridTemplateColumns = tracks(map);
  grid.replaceChildren();
  const top = line(grid);
  const corner = label(top, '', 'columnheader');
  corner.setAttribute('aria-label', 'Layer');
  map.columns.forEach((column, i) => {
    const isOwn = i >= map.heads, name = isOwn ? column : map.head_numbers[column];
    const item = label(top, name, 'columnheader');
    if (isOwn) item.classList.add('own-name');
    item.setAttribute('aria-label', isOwn ? column : `Head ${name}`);
  });
  byId('rollout-note').hidden = !map.rolled;
  const longest = Math.log2(Math.max(2, map.cols));
  for (let layer = 0; layer < map.layers; layer++) {
    const row = line(grid);
    label(row, map.layer_numbers[layer], 'rowheader').classList.add('layer');
    for (const column of map.columns) {
      const button = document.createElement('button'), canvas = document.createElement('canvas');
      button.type = 'button';
      button.className = 'cell';
      button.setAttribute('role', 'gridcell');
      button.tabIndex = -1;
      canvas.width = canvas.height = 1;
      button.append(canvas);
      let title = map.title(layer, column);
      if (typeof column === 'number') {
        const bits = map.entropy[layer][column], bar = document.createElement('span'), inner = document.createElement('i');
        bar.className = 'entropy';
        inner.style.width = `${Math.min(100, (100 * bits) / longest)}%`;
        bar.append(inner);
        button.append(bar);
        title += `, entropy ${bits.toFixed(2)} bits`;
      }
      button.setAttribute('aria-label', title);
      button.title = title;
      const cell = { layer, column, button, canvas, drawn: false, visible: false };
      button.addEventListener('click', (event) => pick(cell, event.ctrlKey || event.metaKey || event.shiftKey));
      row.append(button);
      cells.push(cell);
      seen.observe(button);
    }
  }
}

function line(grid) {
  const row = document.createElement('div');
  row.className = 'row';
  row.setAttribute('role', 'row');
  grid.append(row);
  return row;
}

function label(row, text, role) {
  const item = document.createElement('span');
  item.className = 'name';
  item.setAttribute('role', role);
  item.textContent = text;
  row.append(item);
  return item;
}

function pick(cell, more) {
  const target = { layer: cell.layer, column: cell.column };
  if (!(more || state.several) || !isHead(target)) return change({ current: target, pinned: [] });
  togglePin(target);
}

// A head is added to those that are shown, or taken out. The one that was shown alone stays.
function togglePin(target) {
  const has = state.pinned.some((cell) => sameCell(cell, target));
  if (has) {
    const pinned = state.pinned.filter((cell) => !sameCell(cell, target));
    const current = sameCell(state.current, target) && pinned.length ? pinned[pinned.length - 1] : state.current;
    change({ pinned, current });
  } else {
    const before = state.pinned.length === 0 && isHead(state.current) && !sameCell(state.current, target) ? [state.current] : [];
    change({ pinned: [...state.pinned, ...before, target], current: target });
  }
}

function steerGrid(event) {
  const { map, current } = state;
  const at = map.columns.indexOf(current.column);
  const moves = {
    ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    Home: [0, -at], End: [0, map.columns.length - 1 - at], PageUp: [-current.layer, 0], PageDown: [map.layers - 1 - current.layer, 0],
  };
  if (event.key in moves) {
    const [layers, columns] = moves[event.key];
    const layer = Math.max(0, Math.min(map.layers - 1, current.layer + layers));
    const column = map.columns[Math.max(0, Math.min(map.columns.length - 1, at + columns))];
    change({ current: { layer, column } });
    cells.find((cell) => cell.layer === layer && cell.column === column).button.focus();
  } else if (event.key === 'Enter' || event.key === ' ') {
    if (isHead(current)) {
      const pinned = state.pinned.some((cell) => sameCell(cell, current));
      change({ pinned: pinned ? state.pinned.filter((cell) => !sameCell(cell, current)) : [...state.pinned, current] });
    }
  } else if (event.key === 'Escape') change({ pinned: [] });
  else return;
  event.preventDefault();
}

let drawnFor = '';

function showGrid() {
  if (gridOf !== state.map) buildGrid();
  const look = `${theme()} ${state.scale} ${state.maps.indexOf(state.map)}`;
  const shown = shownCells();
  for (const cell of cells) {
    if (look !== drawnFor) cell.drawn = false;
    const current = sameCell(cell, state.current);
    cell.button.tabIndex = current ? 0 : -1;
    cell.button.setAttribute('aria-selected', String(shown.some((item) => sameCell(item, cell))));
    cell.button.classList.toggle('pinned', state.pinned.some((item) => sameCell(item, cell)));
    cell.button.classList.toggle('own', !isHead(cell));
  }
  drawnFor = look;
  drawThumbnails();
}

function startGrid() {
  byId('grid').addEventListener('keydown', steerGrid);
  byId('several').addEventListener('click', () => change({ several: !state.several }));
  listeners.push(showGrid);
}
