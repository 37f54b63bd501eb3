// All volumes of a case side by side: one crosshair, one slice, radiological convention.
//
// NiiVue draws; mouse and keys are handled here, because its own would let a reader change the
// window, the view or the file of one map and not of the other.

import { Niivue, SLICE_TYPE } from "./vendor/niivue.js";

const MAP_COLOURS = "inferno";
const LEAST_SHARE_LIT = 0.02;
const LEAST_BRIGHTNESS = 24;
const OPTIONS = {
  interactive: false,
  dragAndDropEnabled: false,
  isRadiologicalConvention: true,
  isOrientationTextVisible: false,
  sliceType: SLICE_TYPE.AXIAL,
  crosshairColor: [0.55, 0.8, 1, 0.9],
  crosshairWidthUnit: "mm",
  crosshairWidth: 0,
  isAntiAlias: false,
  loadingText: "",
  logLevel: "error",
};
const CROSSHAIR_PIXELS = 1.5;

export class Viewer {
  // `maps` and `structural` are elements for the figures; `onSlice(number, total)` is told moves.
  constructor(maps, structural, onSlice) {
    this.homes = { maps, structural };
    this.onSlice = onSlice;
    this.frames = { maps: [], structural: [] };
    this.shown = [];
    this.crosshair = true;
  }

  // Shows the volumes; resolves once every map is on the screen, and throws if one cannot be.
  async show(panes, startMm) {
    this.shown = [];
    const place = (name, wanted) => this.#frames(name, wanted);
    const maps = await place("maps", panes.filter((pane) => pane.is_map));
    const structural = await place("structural", panes.filter((pane) => !pane.is_map));
    const all = [...maps, ...structural];
    await Promise.all(all.map(({ frame, pane }) => load(frame, pane)));
    for (const { frame } of all) {
      frame.viewer.opts.crosshairWidth = 0;
      frame.viewer.scene.crosshairPos = frame.viewer.mm2frac(startMm);
      frame.viewer.drawScene();
    }
    for (const { frame, pane } of all) {
      if (pane.is_map && !isLit(frame.viewer)) throw new Error(`${pane.title} stays dark`);
      label(frame);
    }
    this.shown = all;
    this.#redraw();
  }

  // Slices up (towards the top of the head) or down.
  scroll(slices) {
    this.move(0, 0, slices);
  }

  // Moves the crosshair by voxels: to the patient's right, to the front, to the top.
  move(x, y, z) {
    if (!this.shown.length) return;
    const { viewer } = this.shown[0].frame;
    viewer.moveCrosshairInVox(x, y, z);
    this.#follow(viewer);
  }

  toggleCrosshair() {
    this.crosshair = !this.crosshair;
    this.#redraw();
  }

  // The maps' colours, from dark to bright, as [r, g, b, a, r, ...].
  colours() {
    return this.shown[0].frame.viewer.colormap(MAP_COLOURS);
  }

  // Where the crosshair is, as fractions of the volume: for tests and the description.
  position() {
    return this.shown.map(({ frame }) => Array.from(frame.viewer.scene.crosshairPos));
  }

  async #frames(name, panes) {
    const made = this.frames[name];
    while (made.length < panes.length) made.push(await this.#frame(this.homes[name]));
    made.forEach((frame, number) => (frame.figure.hidden = number >= panes.length));
    return panes.map((pane, number) => ({ frame: made[number], pane }));
  }

  async #frame(home) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const screen = document.createElement("div");
    screen.className = "screen";
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    const sides = ["left", "right"].map((side) => {
      const text = document.createElement("span");
      text.className = `side ${side}`;
      return text;
    });
    screen.append(canvas, ...sides);
    figure.append(caption, screen);
    home.append(figure);
    const viewer = new Niivue(OPTIONS);
    await viewer.attachToCanvas(canvas, false);
    const frame = { figure, caption, canvas, sides, viewer };
    this.#listen(frame);
    return frame;
  }

  #listen({ canvas, viewer }) {
    const point = (event) => {
      if (!this.shown.length || !(event.buttons & 1)) return;
      const box = canvas.getBoundingClientRect();
      const x = ((event.clientX - box.left) * canvas.width) / box.width;
      const y = ((event.clientY - box.top) * canvas.height) / box.height;
      const fraction = viewer.canvasPos2frac([x, y]);
      if (fraction[0] < 0) return;
      viewer.scene.crosshairPos = fraction;
      this.#follow(viewer);
    };
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.scroll(event.deltaY < 0 ? 1 : -1);
      },
      { passive: false },
    );
  }

  // Every volume lies on one grid, so that one fraction is one place in all.
  #follow(leader) {
    for (const { frame } of this.shown) frame.viewer.scene.crosshairPos = leader.scene.crosshairPos;
    this.#redraw();
  }

  #redraw() {
    if (!this.shown.length) return;
    for (const { frame } of this.shown) {
      frame.viewer.opts.crosshairWidth = this.crosshair ? frame.crosshairMm : 0;
      frame.viewer.drawScene();
    }
    const { viewer } = this.shown[0].frame;
    const slices = viewer.volumes[0].dimsRAS[3];
    const slice = Math.min(slices, Math.floor(viewer.scene.crosshairPos[2] * slices) + 1);
    for (const { frame, pane } of this.shown) {
      const text = `${pane.title}, axial slice ${slice} of ${slices}, seen from below`;
      frame.canvas.setAttribute("aria-label", text);
    }
    this.onSlice(slice, slices);
  }
}

async function load(frame, pane) {
  frame.caption.textContent = pane.title;
  const [least, most] = pane.window;
  await frame.viewer.loadVolumes([
    {
      url: pane.url,
      name: "volume.nii",
      colormap: pane.is_map ? MAP_COLOURS : "gray",
      cal_min: least,
      cal_max: most,
    },
  ]);
  frame.viewer.setInterpolation(false);
}

// Reads back what the graphics card has drawn.
function isLit(viewer) {
  viewer.drawScene();
  const { gl } = viewer;
  const { width, height } = gl.canvas;
  const pixels = new Uint8Array(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  let lit = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    lit += pixels[i] + pixels[i + 1] + pixels[i + 2] > LEAST_BRIGHTNESS;
  }
  return lit > LEAST_SHARE_LIT * width * height;
}

// R and L from where two points of the picture lie in the patient, not from a setting. They are near
// the middle: where a picture is wider than the brain, its edges lie outside of the volume.
function label(frame) {
  const { viewer, sides } = frame;
  const [left, top, width, height] = viewer.screenSlices[0].leftTopWidthHeight;
  const apart = Math.min(width, height) / 10;
  const places = [-apart, apart].map((shift) => {
    const fraction = viewer.canvasPos2frac([left + width / 2 + shift, top + height / 2]);
    if (fraction[0] < 0) throw new Error("the middle of the picture is not in the volume");
    return viewer.frac2mm(fraction, 0, true)[0];
  });
  const names = places[0] > places[1] ? ["R", "L"] : ["L", "R"];
  if (names[0] !== "R") throw new Error("the picture is not in radiological convention");
  frame.crosshairMm = (CROSSHAIR_PIXELS * Math.abs(places[0] - places[1])) / (2 * apart);
  sides.forEach((side, number) => (side.textContent = names[number]));
}
