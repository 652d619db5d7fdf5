// Hands on what the microphone hears, as whole numbers of 16 bits, in pieces of some 40 ms.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(2048);
    this.n = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    for (let i = 0; i < channels[0].length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.piece[this.n++] = Math.max(-1, Math.min(1, sum / channels.length)) * 32767;
      if (this.n === this.piece.length) {
        this.port.postMessage(this.piece.buffer, [this.piece.buffer]);
        this.piece = new Int16Array(2048);
        this.n = 0;
      }
    }
    return true;
  }
}
registerProcessor('recorder', Recorder);
