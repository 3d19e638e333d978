// Colours of heads and of weights.

const OF_HEADS = { // Okabe and Ito's
  light: ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b08a00', '#56b4e9', '#8a5a00', '#444444'],
  dark: ['#56b4e9', '#ff9f45', '#2fd6a3', '#e6a0c8', '#f0e442', '#8fb7ff', '#d9a86c', '#d5d5d5'],
};

// The square root shows small weights too.
function place(weight, most) {
  return Math.min(STEPS - 1, Math.round(Math.sqrt(weight / most) * (STEPS - 1)));
}

function largest(weights) {
  let most = 0;
  for (let i = 0; i < weights.length; i++) if (weights[i] > most) most = weights[i];
  return most || 1;
}

function scaleTop(weights) {
  return state.scale === 'absolute' ? 1 : largest(weights);
}

// Paints a matrix, a pixel for each weight, or for each block of them its largest where there are more than `limit`.
function paint(canvas, weights, rows, columns, limit = Infinity) {
  const height = Math.min(rows, limit), width = Math.min(columns, limit);
  const most = scaleTop(weights), colours = table();
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  if (height === rows && width === columns) {
    for (let i = 0; i < pixels.length; i++) pixels[i] = colours[place(weights[i], most)];
  } else {
    const blocks = new Float32Array(width * height);
    for (let row = 0; row < rows; row++) {
      const to = Math.floor((row * height) / rows) * width, from = row * columns;
      for (let column = 0; column < columns; column++) {
        const at = to + Math.floor((column * width) / columns), weight = weights[from + column];
        if (weight > blocks[at]) blocks[at] = weight;
      }
    }
    for (let i = 0; i < pixels.length; i++) pixels[i] = colours[place(blocks[i], most)];
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext('2d').putImageData(image, 0, 0);
}
