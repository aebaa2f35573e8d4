// Curves over steps, drawn by uPlot.
import uPlot from "../../vendor/uplot.mjs";
import { html, useEffect, useLayoutEffect, useRef } from "../lib/ui.js";
import { measure } from "../lib/format.js";

const HEIGHT = 170;
const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];
const DASHES = [undefined, [8, 4], [2, 3], [10, 3, 2, 3], [4, 4], [12, 6]];

/**
 * One chart. Lines differ by colour and by dash; the last values stand below as text.
 * @param {{title: string, lines: {name: string, steps: number[], values: (number | null)[]}[]}} props
 */
export function Chart({ title, lines }) {
  const place = useRef();
  const plot = useRef(null);
  const names = lines.map((line) => line.name).join("\n");
  useLayoutEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(lines, place.current), align(lines), place.current);
    };
    draw();
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const theme = new MutationObserver(draw); // the page's own switch between light and dark
    const width = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    scheme.addEventListener("change", draw);
    theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    width.observe(place.current);
    return () => {
      scheme.removeEventListener("change", draw);
      theme.disconnect();
      width.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [names]);
  useEffect(() => plot.current.setData(align(lines)), [lines]);
  return html`
    <figure class="chart">
      <figcaption>${title}</figcaption>
      <div ref=${place} role="img" aria-label="Curve of ${title} over the steps"></div>
      <ul class="legend">
        ${lines.map(
          (line, number) => html`
            <li><span class="swatch swatch-${number % COLOURS.length}" aria-hidden="true"></span>${line.name}: ${measure(line.values.at(-1))}</li>
          `,
        )}
      </ul>
    </figure>
  `;
}

/** uPlot's columns: all steps, then each line's values over them, undefined where the line has none. */
function align(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const columns = lines.map((line) => {
    const found = new Map(line.steps.map((step, index) => [step, line.values[index]]));
    return steps.map((step) => found.get(step)); // undefined is no gap, null is one
  });
  return [steps, ...columns];
}

/** A colour of the style sheet as a canvas takes it, for the scheme that is on. */
function resolved(place, name) {
  place.style.color = `var(${name})`;
  const { color } = getComputedStyle(place);
  place.style.color = "";
  return color;
}

function options(lines, place) {
  const colour = (name) => resolved(place, name);
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--edge"), width: 1 }, ticks: { show: false } };
  return {
    width: place.clientWidth || 300,
    height: HEIGHT,
    scales: { x: { time: false } },
    legend: { show: false }, // the text below, which a screen reader can read
    cursor: { y: false },
    axes: [
      { ...axis, size: 30, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick : "")) },
      { ...axis, size: 60, values: (_, ticks) => ticks.map(measure) },
    ],
    series: [
      {},
      ...lines.map((line, number) => ({
        stroke: colour(COLOURS[number % COLOURS.length]),
        width: 2,
        dash: DASHES[number % DASHES.length],
        points: { show: line.steps.length < 40, size: 5 },
      })),
    ],
  };
}
