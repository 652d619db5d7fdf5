// Draws sound as it comes: a column every 32 ms, tones from LOW_HZ to HIGH_HZ on the scale of mels.
const LOW_HZ = 78,
  HIGH_HZ = 4000,
  STEP_S = 0.032,
  RANGE_DB = 60;
const mel = (hz) => Math.log(1 + hz / 700),
  LOW = mel(LOW_HZ),
  HIGH = mel(HIGH_HZ);

export const stillness = matchMedia('(prefers-reduced-motion: reduce)');

// The power of a real signal whose length is a power of two; (n / 2) numbers.
export function power(signal) {
  const n = signal.length,
    re = Float32Array.from(signal),
    im = new Float32Array(n);
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let size = 2; size <= n; size <<= 1) {
    const angle = (-2 * Math.PI) / size,
      half = size >> 1;
    for (let k = 0; k < half; k++) {
      const c = Math.cos(angle * k),
        s = Math.sin(angle * k);
      for (let i = k; i < n; i += size) {
        const a = re[i + half] * c - im[i + half] * s,
          b = re[i + half] * s + im[i + half] * c;
        re[i + half] = re[i] - a;
        im[i + half] = im[i] - b;
        re[i] += a;
        im[i] += b;
      }
    }
  }
  return re.subarray(0, n / 2).map((x, i) => x * x + im[i] * im[i]);
}

export class Spectrogram {
  constructor(canvas, overlay) {
    this.canvas = canvas;
    this.overlay = overlay;
    this.context = canvas.getContext('2d', { willReadFrequently: false });
    this.above = overlay.getContext('2d');
    this.begin(48000);
  }

  begin(rate_hz) {
    this.rate_hz = rate_hz;
    this.size = 2 ** Math.round(Math.log2(rate_hz * 0.09));
    this.window = Float32Array.from(
      { length: this.size },
      (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / this.size),
    );
    this.rest = new Float32Array(0);
    this.columns = 0; // drawn since the beginning
    this.waiting = []; // columns that are not drawn yet
    this.points = []; // peaks: time, frequency, heard
    this.top_db = -60;
    const { height } = this.canvas;
    this.bins = Array.from(
      { length: height + 1 },
      (_, y) => (700 * (Math.exp(LOW + (HIGH - LOW) * (1 - y / height)) - 1) * this.size) / rate_hz,
    );
    this.overlay.width = this.overlay.clientWidth * devicePixelRatio || this.canvas.width;
    this.overlay.height = this.overlay.clientHeight * devicePixelRatio || height;
    this.context.clearRect(0, 0, this.canvas.width, height);
    this.above.clearRect(0, 0, this.overlay.width, height);
  }

  // samples between -1 and 1 that follow on those before
  push(samples) {
    const x = new Float32Array(this.rest.length + samples.length);
    x.set(this.rest);
    x.set(samples, this.rest.length);
    const step = Math.round(STEP_S * this.rate_hz);
    let at = 0;
    for (; at + this.size <= x.length; at += step)
      this.waiting.push(this.column(x.subarray(at, at + this.size)));
    this.rest = x.slice(at);
    if (!stillness.matches || this.waiting.length > 60) requestAnimationFrame(() => this.draw());
  }

  column(x) {
    const spectrum = power(x.map((v, i) => v * this.window[i]));
    return this.bins.slice(0, -1).map((high, y) => {
      let most = 0;
      for (
        let k = Math.max(1, Math.floor(this.bins[y + 1]));
        k <= Math.ceil(high) && k < spectrum.length;
        k++
      )
        most = Math.max(most, spectrum[k]);
      return 10 * Math.log10(most / ((this.size * this.size) / 16) + 1e-12);
    });
  }

  draw() {
    const n = Math.min(this.waiting.length, this.canvas.width),
      { width, height } = this.canvas;
    if (!n) return;
    const [r, g, b] = getComputedStyle(this.canvas).color.match(/\d+/g).map(Number);
    const image = this.context.createImageData(n, height);
    this.waiting.slice(-n).forEach((column, i) => {
      this.top_db = Math.max(this.top_db - 0.02, ...column);
      column.forEach((db, y) => {
        const value = Math.max(0, 1 + (db - this.top_db) / RANGE_DB);
        image.data.set([r, g, b, 255 * value ** 2], 4 * (y * n + i));
      });
    });
    this.context.globalCompositeOperation = 'copy';
    this.context.drawImage(this.canvas, -n, 0);
    this.context.globalCompositeOperation = 'source-over';
    this.context.putImageData(image, width - n, 0);
    this.columns += this.waiting.length;
    this.waiting = [];
    this.light();
  }

  // peaks of the song: [time in s, frequency in Hz, heard]
  add(points) {
    this.points.push(...points);
    if (!stillness.matches) requestAnimationFrame(() => this.light());
  }

  light() {
    const { width, height } = this.overlay,
      c = this.above,
      n = this.canvas.width,
      one = devicePixelRatio;
    const now_s = this.columns * STEP_S + this.size / this.rate_hz / 2;
    this.points = this.points.filter(([t]) => now_s - t < n * STEP_S);
    c.clearRect(0, 0, width, height);
    c.fillStyle = c.strokeStyle = getComputedStyle(this.overlay).color;
    c.lineWidth = one;
    for (const [t, hz, heard] of this.points) {
      c.beginPath();
      c.arc(
        width * (1 - (now_s - t) / STEP_S / n),
        height * (1 - (mel(hz) - LOW) / (HIGH - LOW)),
        2.5 * one,
        0,
        7,
      );
      c.globalAlpha = heard ? 1 : 0.6;
      heard ? c.fill() : c.stroke();
    }
  }
}
