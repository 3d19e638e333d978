// What the current query looks at, in words and numbers: a table, a line for one pair, a tip at the pointer, and a
// sentence for screen readers.

const ROWS = 10;
let spoken = null;

// A weight in digits, with a sign before one that is the mean of the small ones of its row.
function told(row, key) {
  const { map } = state;
  const folded = shownCells().some(({ layer, column }) => map.folded(layer, column, row, key));
  return (folded ? '≈ ' : '') + number(shownWeights()[row * map.cols + key]);
}

const named = (tokens, i) => `“${readable(tokens[i])}”`;

function showReadout() {
  const { map } = state, { columns } = extent(), weights = shownWeights(), at = query();
  byId('shown').textContent = shownTitle();
  const most = scaleTop(weights), colours = byId('scale-bar').getContext('2d');
  byId('legend').hidden = state.view === 'picture'; // the image has its own colours
  byId('most').textContent = number(most);
  const bar = new ImageData(96, 1), pixels = new Uint32Array(bar.data.buffer);
  for (let i = 0; i < 96; i++) pixels[i] = table()[place((most * i) / 95, most)];
  colours.putImageData(bar, 0, 0);
  showChips();
  const body = byId('strongest');
  if (at === null) {
    byId('query').textContent = 'Strongest tokens';
    byId('pair').textContent = 'Point at a query, or choose one with the arrow keys.';
    body.replaceChildren();
    return;
  }
  byId('query').textContent = `${named(map.queries, at)} looks at`;
  const written = map.writes?.[at];
  byId('pair').textContent = state.key === null
    ? `position ${at} of 0 to ${map.rows - 1}${written === undefined ? '' : `, writes “${readable(written)}”`}${state.held ? ', pinned' : ''}`
    : `${named(map.keys, state.key)} (${state.key}): ${told(at, state.key)}`;
  const found = strongest(weights, at, columns, ROWS);
  byId('caption').textContent = `The strongest keys of ${named(map.queries, at)}, ${shownTitle()}`;
  body.replaceChildren(...found.map(({ key, weight }) => {
    const row = document.createElement('tr'), name = document.createElement('th'), share = document.createElement('td');
    const place_ = document.createElement('small'), barOf = document.createElement('span'), value = document.createElement('td');
    name.scope = 'row';
    name.textContent = readable(map.keys[key]);
    place_.textContent = key;
    name.append(place_);
    share.className = 'share';
    barOf.style.width = `${(100 * weight) / found[0].weight}%`;
    share.append(barOf);
    value.className = 'weight';
    value.textContent = told(at, key);
    row.append(name, share, value);
    row.classList.toggle('current', key === state.key);
    return row;
  }));
  clearTimeout(spoken);
  spoken = setTimeout(() => {
    const pair = state.key === null ? '' : ` ${named(map.keys, state.key)} ${told(at, state.key)}.`;
    const list = found.slice(0, 3).map(({ key, weight }) => `${readable(map.keys[key])} ${number(weight)}`).join(', ');
    byId('live').textContent = `${shownTitle()}. ${named(map.queries, at)} looks most at ${list}.${pair}`;
  }, 250);
}

let chipsFor = '';

function showChips() {
  const shown = shownCells(), colours = OF_HEADS[theme()];
  const coloured = state.view === 'lines' && shown.length <= MOST_COLOURS;
  const key = JSON.stringify([shown, coloured, theme()]);
  if (key === chipsFor) return; // a button that is being pressed stays
  chipsFor = key;
  byId('chips').replaceChildren(...(shown.length < 2 ? [] : shown.map((cell, i) => {
    const chip = document.createElement('button'), dot = document.createElement('i');
    chip.type = 'button';
    chip.className = 'chip';
    dot.style.background = coloured ? colours[i] : style('--bar');
    const name = `layer ${state.map.layer_numbers[cell.layer]}, head ${state.map.head_numbers[cell.column]}`;
    chip.append(dot, `${name} ×`);
    chip.setAttribute('aria-label', `Take out ${name}`);
    chip.addEventListener('click', () => {
      const pinned = state.pinned.filter((item) => !sameCell(item, cell));
      change({ pinned, current: sameCell(state.current, cell) ? pinned[pinned.length - 1] ?? cell : state.current });
    });
    return chip;
  })));
}

function tip(event, row, key) {
  const { map } = state, box = byId('tip'), weight = document.createElement('b');
  weight.textContent = told(row, key);
  box.replaceChildren(weight, `  ${readable(map.queries[row])} → ${readable(map.keys[key])}`, document.createElement('br'), shownTitle());
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const x = event.clientX + 14 + width > window.innerWidth ? event.clientX - width - 10 : event.clientX + 14;
  const y = event.clientY + 16 + height > window.innerHeight ? event.clientY - height - 10 : event.clientY + 16;
  box.style.left = `${Math.max(4, x)}px`;
  box.style.top = `${Math.max(4, y)}px`;
}
