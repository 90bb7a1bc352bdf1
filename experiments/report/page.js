// Draws the plots, moves the keyboard's cursor over them, and opens what a cell holds.
const data = JSON.parse(document.getElementById("page-data").textContent);
const embedded = { actions: false, renderer: "svg", tooltip: { disableDefaultStyle: true } };

const shown = (value) =>
  value === null || value === undefined ? "not judged"
    : value >= 3e38 ? "not finite" : Number(value.toPrecision(3)).toString();

// The errors of one prompt by place, position and head, unpacked on first use.
const unpacked = new Map();
function detail(name) {
  if (!unpacked.has(name)) {
    const packed = data.details[name];
    const codes = Uint8Array.from(atob(packed.codes), (c) => c.charCodeAt(0));
    const value = (place, position, group) => {
      const code = codes[(place * packed.positions.length + position) * packed.groups + group];
      if (code === 0) return null;
      if (code === 1) return 0;
      if (code === 255) return Number.MAX_VALUE;
      return 10 ** (packed.lowest_decade + (code - 1) / packed.steps_per_decade);
    };
    unpacked.set(name, { ...packed, value });
  }
  return unpacked.get(name);
}

function headsOf(name, layer, site) {
  const found = detail(name);
  const place = found.places.findIndex(([l, s]) => l === layer && s === site);
  if (place < 0) return null;
  const kind = found.kinds[place];
  const values = [];
  for (let group = 0; group < found.groups; group++)
    found.positions.forEach((position, p) => {
      const local = found.value(place, p, group);
      if (local !== null) values.push({ local, position, head: `${kind} ${group}`, status: "" });
    });
  const title = `${site}${layer === "outside" ? "" : ` of layer ${layer}`}: local error over floor ` +
    `by ${kind} and position`;
  return { title, values, x: "position", y: "head", xs: found.positions };
}

function sitesOf(name, layer, position) {
  const found = detail(name);
  const first = Number(position.split("-")[0]);
  const p = found.positions.findIndex((text) => first <= Number(text.split("-").pop()));
  const values = [];
  found.places.forEach(([l, site], place) => {
    for (let group = 0; l === layer && group < found.groups; group++) {
      const local = found.value(place, p, group);
      if (local !== null) values.push({ local, site, head: String(group), status: "" });
    }
  });
  const xs = Array.from({ length: found.groups }, (_, group) => String(group));
  const where = layer === "outside" ? "outside the layers" : `layer ${layer}`;
  const title = `${where}, position ${found.positions[p]}: local error over floor by site and head`;
  return { title, values, x: "head", y: "site", xs };
}

function fillTable(holder, found, ys) {
  const table = document.createElement("table");
  const row = (texts, tag) => {
    const tr = table.insertRow();
    texts.forEach((text) => tr.appendChild(document.createElement(tag)).append(text));
  };
  row([found.y, ...found.xs], "th");
  const at = new Map(found.values.map((v) => [`${v[found.y]}\n${v[found.x]}`, v.local]));
  ys.forEach((y) => row([y, ...found.xs.map((x) => shown(at.get(`${y}\n${x}`)))], "td"));
  holder.replaceChildren(table);
}

async function open(figure, host, datum) {
  const isHeads = figure.opens === "heads";
  const found = isHeads
    ? headsOf(figure.detail, datum.layer, datum.site)
    : sitesOf(figure.detail, datum.layer, datum.position);
  const panel = host.closest("figure").querySelector(".detail");
  panel.hidden = false;
  if (!found || !found.values.length) {
    panel.querySelector("h3").textContent = "Nothing was judged there";
    panel.querySelectorAll(".plot, .detail-table").forEach((node) => node.replaceChildren());
    return;
  }
  panel.querySelector("h3").textContent = found.title;
  const ys = [...new Set(found.values.map((v) => v[found.y]))];
  const spec = structuredClone(data.templates[figure.opens]);
  spec.data.values = found.values;
  spec.height = 22 * ys.length;
  Object.assign(spec.encoding.x, { sort: found.xs });
  Object.assign(spec.encoding.y, { sort: ys });
  delete spec.encoding.y.axis.values;
  spec.encoding.x.axis.values = found.xs.filter((_, i) => i % Math.ceil(found.xs.length / 24) === 0);
  await vegaEmbed(panel.querySelector(".plot"), spec, embedded);
  fillTable(panel.querySelector(".detail-table"), found, ys);
}

function keyboard(figure, host, view) {
  const [x, y] = figure.axes;
  const xs = figure.spec.encoding.x.sort, ys = figure.spec.encoding.y.sort;
  const cells = new Map(figure.spec.data.values.map((v) => [`${v[x]}\n${v[y]}`, v]));
  const says = host.closest("figure").querySelector(".cursor");
  let at = [-1, -1];
  const show = () => {
    const [cx, cy] = [xs[at[0]], ys[at[1]]];
    view.signal("cursor_x", cx).signal("cursor_y", cy).runAsync();
    const found = cells.get(`${cx}\n${cy}`);
    says.textContent = `${y} ${cy}, ${x} ${cx}: ` + (found
      ? `local ${shown(found.local)}, propagated ${shown(found.propagated)} of the floor; ${found.status}`
      : data.absent);
    return found;
  };
  host.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.target !== host || !(step || event.key === "Enter")) return;
    event.preventDefault();
    if (step) {
      at = at[0] < 0 ? [0, 0]
        : [Math.min(Math.max(at[0] + step[0], 0), xs.length - 1),
          Math.min(Math.max(at[1] + step[1], 0), ys.length - 1)];
      show();
    } else if (at[0] >= 0) {
      const found = show();
      if (found) open(figure, host, found);
    }
  });
}

async function draw(host) {
  const figure = data.figures[host.dataset.figure];
  const { view } = await vegaEmbed(host, figure.spec, embedded);
  if (figure.axes.length) keyboard(figure, host, view);
  if (figure.opens)
    view.addEventListener("click", (_, item) => {
      if (item && item.datum && item.datum.status) open(figure, host, item.datum);
    });
}

document.querySelectorAll(".copy").forEach((button) =>
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent.trim());
    } catch {
      getSelection().selectAllChildren(code);
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }));
document.querySelectorAll(".close").forEach((button) =>
  button.addEventListener("click", () => {
    button.closest(".detail").hidden = true;
    button.closest("figure").querySelector(".plot").focus();
  }));

const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  closed.forEach((node) => (node.open = true));
});
addEventListener("afterprint", () => closed.splice(0).forEach((node) => (node.open = false)));

await Promise.all([...document.querySelectorAll(".plot[data-figure]")].map(draw));
document.documentElement.dataset.drawn = "true";
