// The page's data: tokens as JSON, weights as compressed codes (qkv/view/codes.py says how).

const page = JSON.parse(document.getElementById('data').textContent);
const REST = 1, POWER = 3;
const CACHED = 1 << 22; // weights that are kept decoded

async function unpack(text) {
  const buffer = await inflate(text);
  return page.bits === 16 ? new Uint16Array(buffer) : new Uint8Array(buffer);
}

function levelsOf(count) {
  return Float32Array.from({ length: count + 2 }, (_, code) => (Math.max(code - REST, 0) / count) ** POWER);
}

// Weights (layers, heads, rows, columns), of which a head is decoded when it is looked at.
class Weights {
  constructor(codes, shape, levels, largest) {
    [this.layers, this.heads, this.rows, this.columns] = shape;
    Object.assign(this, { codes, levels, largest, cache: new Map() });
  }

  // Whether a weight has no level of its own and shows the mean of such ones in its row.
  folded(layer, head, row, column) {
    return this.codes[((layer * this.heads + head) * this.rows + row) * (this.columns + 1) + 1 + column] === REST;
  }

  head(layer, head) {
    const key = layer * this.heads + head;
    let found = this.cache.get(key);
    if (!found) {
      found = this.decode(key);
      const size = this.rows * this.columns;
      if ((this.cache.size + 1) * size > CACHED) this.cache.delete(this.cache.keys().next().value);
      this.cache.set(key, found);
    }
    return found;
  }

  decode(number) {
    const { rows, columns, codes, levels } = this;
    const weights = new Float32Array(rows * columns), largest = this.largest[number];
    let at = number * rows * (columns + 1), to = 0;
    for (let row = 0; row < rows; row++) {
      const rest = levels[codes[at++]];
      for (let column = 0; column < columns; column++) {
        const code = codes[at++];
        weights[to++] = largest * (code === REST ? rest : levels[code]);
      }
    }
    return weights;
  }
}

// The mean of some matrices of one size.
function mean(matrices) {
  if (matrices.length === 1) return matrices[0];
  const sum = new Float32Array(matrices[0].length);
  for (const matrix of matrices) for (let i = 0; i < sum.length; i++) sum[i] += matrix[i];
  for (let i = 0; i < sum.length; i++) sum[i] /= matrices.length;
  return sum;
}

// One kind of attention. Its columns in the grid are the heads, their mean, and attention rollout where there is one.
class AttentionMap {
  constructor(described, weights, rolled) {
    Object.assign(this, described, { weights, rolled });
    [this.layers, this.heads, this.rows, this.cols] = described.shape;
    this.columns = [...Array(this.heads).keys()];
    if (this.heads > 1) this.columns.push('mean');
    if (rolled) this.columns.push('rollout');
  }

  matrix(layer, column) {
    if (column === 'rollout') return this.rolled.head(layer, 0);
    if (column !== 'mean') return this.weights.head(layer, column);
    if (this.meanOf !== layer) {
      this.meanOf = layer;
      const sum = new Float32Array(this.rows * this.cols);
      for (let head = 0; head < this.heads; head++) {
        const weights = this.weights.head(layer, head);
        for (let i = 0; i < sum.length; i++) sum[i] += weights[i] / this.heads;
      }
      this.meanWeights = sum;
    }
    return this.meanWeights;
  }

  folded(layer, column, row, key) {
    if (column === 'rollout') return this.rolled.folded(layer, 0, row, key);
    const heads = column === 'mean' ? [...Array(this.heads).keys()] : [column];
    return heads.some((head) => this.weights.folded(layer, head, row, key));
  }

  title(layer, column) {
    const number = this.layer_numbers[layer];
    if (column === 'rollout') return `Rollout through layer ${number}`;
    if (column === 'mean') return `Layer ${number}, mean of ${this.heads} heads`;
    return `Layer ${number}, head ${this.head_numbers[column]}`;
  }
}

async function readMaps() {
  const blocks = [...document.querySelectorAll('script.codes')];
  const levels = levelsOf(page.levels);
  const read = async (shape, largest) => {
    const block = blocks.shift();
    const codes = await unpack(block.textContent);
    block.remove(); // the text is larger than the codes
    return new Weights(codes, shape, levels, largest);
  };
  const maps = [];
  for (const described of page.maps) {
    const [layers, , rows, columns] = described.shape;
    const [ofWeights, ofRollout] = described.largest;
    const weights = await read(described.shape, ofWeights);
    maps.push(new AttentionMap(described, weights, described.rollout ? await read([layers, 1, rows, columns], ofRollout) : null));
  }
  return maps;
}
