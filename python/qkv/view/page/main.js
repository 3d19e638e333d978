// Controls above the picture, the theme, and the start.

// One of several values, as radio buttons that look like one control.
function choice(container, name, options, chosen, chose) {
  const set = document.createElement('fieldset'), legend = document.createElement('legend');
  set.className = 'choice';
  legend.textContent = name;
  set.append(legend);
  for (const [value, text] of options) {
    const label_ = document.createElement('label'), input = document.createElement('input');
    input.type = 'radio';
    input.name = name;
    input.value = value;
    input.checked = value === chosen;
    input.addEventListener('change', () => chose(value));
    label_.append(input, text);
    set.append(label_);
  }
  container.replaceChildren(set);
}

function lookAt(index) {
  const map = state.maps[index];
  const { layer, column } = state.current;
  const fits = layer < map.layers && map.columns.includes(column);
  change({
    map,
    current: fits ? state.current : { layer: 0, column: 0 },
    pinned: [],
    query: null,
    key: null,
    held: false,
    step: map.prompt === null ? null : Math.min(state.step ?? Infinity, map.rows - map.prompt),
    view: map.picture ? 'picture' : state.view === 'picture' ? 'matrix' : state.view,
  });
  const views = [['matrix', 'Matrix'], ['lines', 'Lines']];
  if (map.picture) views.unshift(['picture', 'Image']);
  choice(byId('views'), 'View', views, state.view, (view) => change({ view, ...(view === 'picture' ? {} : { key: null }) }));
  const steps = map.prompt === null ? 0 : map.rows - map.prompt + 1;
  byId('steps').hidden = !steps;
  byId('step').max = steps || 1;
  byId('step').value = (state.step ?? 0) + 1;
}

function showControls() {
  const { map, step } = state;
  byId('several').setAttribute('aria-pressed', String(state.several));
  byId('summary').textContent = `${map.name}: ${map.layers} layer${map.layers > 1 ? 's' : ''} of ${map.heads} head${map.heads > 1 ? 's' : ''}, ` +
    (map.rows === map.cols ? `${map.rows} tokens` : `${map.rows} queries, ${map.cols} keys`);
  if (step === null) return;
  const text = map.written[step];
  const words = `${step + 1} of ${map.rows - map.prompt + 1}${text === undefined ? '' : `: writes “${readable(text)}”`}`;
  byId('written').textContent = words;
  byId('step').setAttribute('aria-valuetext', words);
}

function showFooter() {
  const [error, own] = ['error', 'own_error'].map((name) => Math.max(...state.maps.map((map) => map[name])));
  const kept = page.kept < 1 ? ` In each row the largest ${Math.round(100 * page.kept)} % have values of their own; the others show their mean, with the sign ≈, and are off by ${error.toPrecision(1)} at most.` : '';
  const writes = state.maps.some((map) => map.writes) ? ' Rows of a decoder are named by the token that is read there; what is written from it is the name of the next row.' : '';
  byId('precision').textContent = `Weights have ${page.bits} bits here, as parts of the largest of their head, and are off by ${(100 * own).toPrecision(1)} % of that at most.${kept} Layers, heads and positions are numbered from 0.${writes}`;
  byId('notes').replaceChildren(...state.maps.flatMap((map) => map.notes).map((note) => {
    const line_ = document.createElement('p');
    line_.textContent = note;
    return line_;
  }));
}

async function start() {
  themed.push(() => state.map && change({}));
  startTheme();
  state.maps = await readMaps();
  for (const id of ['toolbar', 'content', 'footer']) byId(id).hidden = false;
  if (state.maps.length > 1) {
    choice(byId('maps'), 'Attention', state.maps.map((map, i) => [i, map.name]), state.maps.length - 1, lookAt);
  } else byId('maps').remove();
  choice(byId('scales'), 'Colours', [['relative', 'Relative'], ['absolute', '0 to 1']], state.scale, (scale) => change({ scale }));
  byId('step').addEventListener('input', (event) => change({ step: Number(event.target.value) - 1, query: null, key: null, held: false }));
  startGrid();
  startMatrix();
  startLines();
  startPicture();
  listeners.push(showReadout, showControls);
  new ResizeObserver(() => change({})).observe(byId('content'));
  const last = state.maps[state.maps.length - 1];
  if (last.picture) state.current = { layer: last.layers - 1, column: last.heads > 1 ? 'mean' : 0 };
  lookAt(state.maps.length - 1);
  showFooter();
  requestAnimationFrame(() => requestAnimationFrame(() => (document.body.dataset.ready = 'yes')));
}

start().catch((error) => {
  byId('message').hidden = false;
  byId('message').textContent = typeof DecompressionStream === 'undefined' ? 'This browser cannot unpack the weights; it has no DecompressionStream.' : `The weights cannot be shown: ${error.message}`;
  throw error;
});
