// How a number of the document is written. Nothing is rounded but here.

export const NONE = "–";

const STEPS = ["B", "kB", "MB", "GB", "TB"];

function bytes(value) {
  let step = 0;
  let left = value;
  while (left >= 1000 && step < STEPS.length - 1) {
    left /= 1000;
    step += 1;
  }
  return `${step ? left.toFixed(1) : left} ${STEPS[step]}`;
}

function seconds(value) {
  if (value < 60) return `${Math.round(value * 10) / 10} s`;
  const whole = Math.round(value);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const FORMATS = {
  text: String,
  count: (value) => String(value),
  length: (value) => String(value.length),
  fixed2: (value) => value.toFixed(2),
  fixed3: (value) => value.toFixed(3),
  bytes,
  seconds,
  utc: (value) => value.replace("T", " ").replace("Z", ""),
  epoch: (value) => new Date(value * 1000).toISOString().slice(0, 19).replace("T", " "),
};

export function formatted(value, format) {
  return value === null || value === undefined ? NONE : FORMATS[format](value);
}

export const localTime = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
