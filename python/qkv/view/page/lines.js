// Heads as lines between tokens: queries on the left, keys on the right, the wider the larger the weight. Of a long text
// only what is in sight is drawn.

const LINE = 22, MOST_COLOURS = 8, STRONGEST = 6; // pixels of a token; heads with colours; lines of a query

function shownHeads() {
  const { map } = state, picked = shownCells(), colours = OF_HEADS[theme()];
  if (picked.length === 1 || picked.length > MOST_COLOURS) return [{ weights: shownWeights(), colour: style('--bar') }];
  return picked.map((cell, i) => ({ weights: map.matrix(cell.layer, cell.column), colour: colours[i] }));
}

// The keys with the largest weights of a row, the largest first.
function strongest(weights, row, columns, count) {
  const { cols } = state.map, found = [];
  for (let key = 0; key < columns; key++) {
    const weight = weights[row * cols + key];
    if (weight <= 0 || (found.length === count && weight <= found[count - 1].weight)) continue;
    let at = found.length;
    while (at && found[at - 1].weight < weight) at--;
    found.splice(at, 0, { key, weight });
    if (found.length > count) found.pop();
  }
  return found;
}

function showLines() {
  const view = byId('lines-view');
  view.hidden = state.view !== 'lines';
  if (view.hidden) return;
  const { map } = state, { rows, columns } = extent();
  byId('lines-space').style.height = `${Math.max(rows, columns) * LINE + 8}px`;
  const width = view.clientWidth, height = Math.min(view.clientHeight, Math.max(rows, columns) * LINE + 8), top = view.scrollTop;
  const context = sized(byId('lines'), width, height);
  context.font = FONT;
  const gutter = Math.min(170, width * 0.3), left = gutter, right = width - gutter, at = query();
  const y = (index) => (index + 0.5) * LINE + 4 - top;
  const reach = Math.ceil(height / LINE), from = Math.max(0, Math.floor(top / LINE) - reach), to = Math.min(rows, from + 3 * reach);
  const heads = shownHeads(), looked = new Float32Array(columns), most = scaleTop(shownWeights());
  context.lineCap = 'round';
  for (const { weights, colour } of heads) {
    context.strokeStyle = colour;
    for (let row = at === null ? from : at; row < (at === null ? to : at + 1); row++) {
      for (const { key, weight } of strongest(weights, row, columns, at === null ? STRONGEST : columns)) {
        const strength = Math.min(1, weight / most); // in the colours' scale
        looked[key] = Math.max(looked[key], at === null ? 0 : strength);
        if (strength < 0.1 && at === null) continue;
        context.globalAlpha = 0.06 + 0.84 * strength;
        context.lineWidth = 0.75 + 3.75 * strength;
        context.beginPath();
        context.moveTo(left, y(row));
        context.bezierCurveTo(left + (right - left) * 0.4, y(row), right - (right - left) * 0.4, y(key), right, y(key));
        context.stroke();
      }
    }
  }
  context.globalAlpha = 1;
  context.textBaseline = 'middle';
  const ink = style('--ink'), accent = style('--accent'), bar = style('--bar');
  for (let i = Math.max(0, Math.floor(top / LINE) - 1); i < Math.max(rows, columns) && y(i) < height + LINE; i++) {
    if (i < rows) {
      context.textAlign = 'right';
      context.fillStyle = i === at ? accent : ink;
      context.fillText(shorten(context, readable(map.queries[i]), gutter - 16), left - 10, y(i));
    }
    if (i < columns) {
      if (looked[i] > 0) {
        context.globalAlpha = 0.04 + 0.36 * looked[i];
        context.fillStyle = bar;
        context.fillRect(right + 4, y(i) - LINE / 2 + 1, gutter - 4, LINE - 2);
        context.globalAlpha = 1;
      }
      context.textAlign = 'left';
      context.fillStyle = i === state.key ? accent : ink;
      context.fillText(shorten(context, readable(map.keys[i]), gutter - 16), right + 10, y(i));
    }
  }
}

function startLines() {
  const view = byId('lines-view');
  const place = (event) => {
    const box = view.getBoundingClientRect(), { rows, columns } = extent();
    const index = Math.floor((event.clientY - box.top + view.scrollTop - 4) / LINE);
    const share = (event.clientX - box.left) / view.clientWidth;
    return { row: share < 0.5 && index < rows ? index : null, key: share >= 0.5 && index < columns ? index : null };
  };
  view.addEventListener('pointermove', (event) => {
    const { row, key } = place(event);
    if (row !== null) moveTo(row, state.held ? (state.key ?? 0) : 0);
    if (row !== null) change({ key: null });
    else if (key !== null && query() !== null) {
      change({ key });
      tip(event, query(), key);
      return;
    }
    byId('tip').hidden = true;
  });
  view.addEventListener('pointerleave', leave);
  view.addEventListener('click', (event) => {
    const { row } = place(event);
    if (row !== null) hold(row);
  });
  view.addEventListener('scroll', () => change({}));
  view.addEventListener('keydown', (event) => {
    steer(event);
    const at = state.query;
    if (at !== null && (at * LINE < view.scrollTop || (at + 1) * LINE > view.scrollTop + view.clientHeight)) view.scrollTop = at * LINE - view.clientHeight / 2;
  });
  listeners.push(showLines);
}
