// How fast an answer comes: three numbers and a plot, brought up to date four times a second.

const BUCKET = 250; // milliseconds
const MOST_BUCKETS = 60; // then each two become one
const SHORTEST = 100; // milliseconds, below which a rate says nothing
const HEIGHT = 20;

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;

export class Rate {
  /** @param {Element} place the paragraph with the numbers and the plot */
  constructor(place) {
    this.place = place;
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.count = 0;
    this.width = BUCKET;
    this.buckets = [0];
    this.timer = setInterval(() => this.draw(), BUCKET);
    place.hidden = false;
    this.draw();
  }

  /** Count a token. */
  add() {
    this.last = performance.now();
    this.first ??= this.last;
    this.count += 1;
    this.bucketAt(this.last);
    this.buckets[this.buckets.length - 1] += 1;
  }

  bucketAt(now) {
    while (now - this.began >= this.width * this.buckets.length) {
      this.buckets.push(0);
      if (this.buckets.length > MOST_BUCKETS) {
        this.width *= 2;
        this.buckets = Array.from(
          { length: Math.ceil(this.buckets.length / 2) },
          (_, n) => this.buckets[2 * n] + (this.buckets[2 * n + 1] ?? 0),
        );
      }
    }
  }

  /** No more tokens come. */
  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.draw();
  }

  /** Tokens a second, from the first token to the last, or to now. */
  get perSecond() {
    const end = this.timer === null ? this.last : performance.now();
    const span = end - this.first;
    return this.count > 1 && span >= SHORTEST ? ((this.count - 1) * 1000) / span : 0;
  }

  draw() {
    const say = (name, text) => (this.place.querySelector(`.${name}`).textContent = text);
    const first = this.first === null ? null : this.first - this.began;
    const waited = performance.now() - this.began;
    say("first", first === null ? (this.timer === null ? "–" : seconds(waited)) : seconds(first));
    say("rate", this.perSecond ? this.perSecond.toFixed(1) : "–");
    say("count", String(this.count));
    if (this.timer !== null) this.bucketAt(performance.now());
    this.plot();
  }

  plot() {
    const plot = this.place.querySelector(".plot");
    const shown = this.buckets.slice(0, -1); // the last one is not full
    plot.classList.toggle("empty", shown.length < 2);
    const most = Math.max(1, ...shown);
    const width = Math.max(shown.length - 1, 1);
    const points = shown.map((count, n) => `${n},${(HEIGHT - 1 - (count / most) * (HEIGHT - 2)).toFixed(2)}`);
    plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    plot.querySelector("polyline").setAttribute("points", points.join(" "));
    const area = points.length ? `M0,${HEIGHT} L${points.join(" L")} L${shown.length - 1},${HEIGHT} Z` : "";
    plot.querySelector("path").setAttribute("d", area);
    const peak = (most * 1000) / this.width;
    plot.setAttribute("aria-label", `Rate over time, at most ${peak.toFixed(0)} tokens a second`);
  }
}
