"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("document").textContent);
  const $ = (id) => document.getElementById(id);

  // Elements. Every text of the document goes in as text, never as markup.
  function put(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) if (value != null) node.setAttribute(name, value);
    node.append(...children.filter((child) => child != null));
    return node;
  }
  const html = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
  const draw = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

  // Numbers as people read them.
  function scaled(number, base, units) {
    if (number == null) return "unknown";
    let unit = 0;
    while (number >= base && unit < units.length - 1) { number /= base; unit += 1; }
    return unit ? `${number < 99.95 ? number.toPrecision(3) : Math.round(number)} ${units[unit]}` : `${number} ${units[0]}`.trim();
  }
  const count = (number) => scaled(number, 1000, ["", "k", "M", "G", "T", "P"]);
  const bytes = (number) => scaled(number, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
  const COSTS = [["parameters", "parameters", count], ["flops", "FLOPs", count], ["kept", "kept for backward", bytes]];

  // A view: its graphs as items (groups and nodes), each with its parent and, in the order of the layout, its children.
  function readGraph(graph, view) {
    const { words, values } = graph;
    const groups = graph.groups.map((group, place) => ({ ...group, place, view, graph, isGroup: true }));
    const nodes = graph.nodes.map(([name, label, kind, , target, value, parameters, flops, kept, source]) => ({
      name, label: words[label], kind, target: words[target], value: values[value], parameters, flops, kept, source: words[source],
      view, graph, isGroup: false,
    }));
    for (const group of groups) {
      group.inside = group.children.map((place) => (place < 0 ? groups[-1 - place] : nodes[place]));
      for (const item of group.inside) item.parent = group;
      // A value that leaves is made by a node inside, which has a box of its own.
      group.ports = [...(group.inputs ?? []).map((place) => nodes[place]), ...(group.outputs ?? []).map((place) => ({ ...nodes[place], of: nodes[place] }))];
    }
    return { id: graph.id, groups, nodes, named: new Map(nodes.map((node) => [node.name, node])) };
  }
  function readView(name, content) {
    const pane = $(`view-${name}`);
    const view = { name, pane, canvas: pane.querySelector(".canvas") };
    view.graphs = content.graphs.map((graph) => readGraph(graph, view));
    const tops = view.graphs.map((graph) => graph.groups[0]);
    if (tops.length === 1) [view.root] = tops;
    else {
      view.root = { label: data.model.type, kind: "model", isGroup: true, view, inside: tops, ports: [], ...data.totals[name] };
      for (const top of tops) Object.assign(top, { parent: view.root, label: top.graph.id || top.label });
    }
    view.open = view.root;
    return view;
  }
  const views = ["before", "after"].filter((name) => data.views[name]).map((name) => readView(name, data.views[name]));
  const otherView = (view) => views.find((one) => one !== view);
  function counterpart(item) {
    const beside = otherView(item.view);
    if (!beside || item === item.view.root) return beside?.root;
    const graph = beside.graphs.find((one) => one.id === item.graph.id);
    return item.isGroup ? graph?.groups[item.counterpart ?? -1] : graph?.named.get(item.name);
  }
  const pathOf = (item) => (item.parent ? [...pathOf(item.parent), item] : [item]);
  const nameOf = (item) => (item.parent ? (item.path ??= [item.parent.parent && nameOf(item.parent), titleOf(item)].filter(Boolean).join(" / ")) : item.label);

  // What a box says.
  // Colours are by what names commonly stand for, and say nothing that words do not.
  const FAMILIES = [
    ["attention", /attention|attn|sdpa/i], ["convolution", /conv|downsample|patch/i], ["norm", /norm|^bn|^ln|_bn|_ln/i],
    ["embedding", /embed|tokens|position|wte|wpe/i], ["activation", /elu|silu|tanh|sigmoid|softmax|swish|mish|^act/i],
    ["pool", /pool|interpolate/i], ["linear", /linear|matmul|addmm|bmm|einsum|^fc|proj|head|dense|qkv|classifier/i],
    ["sum", /^(add|sub|mul|div|cat)/i],
  ];
  const familyOf = (item) => (["parameter", "synthesis", "input", "output"].includes(item.kind) ? item.kind
    : FAMILIES.find(([, pattern]) => pattern.test(item.label))?.[0] ?? "other");
  const titleOf = (item) => (["block", "surrogate"].includes(item.kind) ? item.name : item.label);
  // How many blocks inside a group are replaced, at any depth.
  const replacedIn = (item) => (item.gone ??= item.inside.reduce((sum, one) => sum + (one.status === "replaced" ? 1 : one.isGroup ? replacedIn(one) : 0), 0));
  function tagOf(item) {
    if (item.kind === "surrogate") return item.surrogate ?? "surrogate";
    if (item.copies) return `×${item.copies}`;
    if (item.status) return item.status === "kept" ? "" : item.status;
    return item.isGroup && replacedIn(item) ? `${replacedIn(item)} replaced` : "";
  }
  const shapeOf = (value) => value?.shape?.join("×") ?? value?.text ?? "";
  function summaryOf(item) {
    const gone = item.copies ? replacedIn(item) : 0;
    const words = [
      titleOf(item), item.kind, item.type !== item.label && item.type, item.copies && `${item.copies} copies`, gone && `${gone} of them replaced`, !item.copies && !item.status && tagOf(item),
      item.kind === "surrogate" ? `by ${tagOf(item)} in place of the block` : item.status === "kept" ? "" : item.status, shapeOf(item.value),
      item.parameters > 0 && `${count(item.parameters)} parameters`, item.isGroup && "opens",
    ];
    return words.filter(Boolean).join(", ");
  }
  // The second line of a box, in its longest form that fits.
  function secondLine(item, width) {
    const joined = (...words) => words.filter(Boolean).join(" · ");
    const forms = [];
    if (item.isGroup) {
      const [parameters, flops] = [item.parameters > 0 && `${count(item.parameters)} param`, item.flops > 0 && `${count(item.flops)} FLOP`];
      const gone = item.copies && replacedIn(item) ? `${replacedIn(item)} of ${item.copies} replaced` : "";
      const type = item.type !== item.label && item.type;
      forms.push(joined(gone, parameters, flops), joined(gone, parameters), gone || joined(parameters, flops), gone || parameters);
      if (!gone) forms.unshift(joined(type, parameters, flops), joined(type, parameters));
    } else {
      const path = item.kind === "layer" && item.target !== item.label && item.target;
      forms.push(joined(path, shapeOf(item.value)), shapeOf(item.value));
    }
    const form = forms.find((one) => one && widthOf(one, SMALL) <= width) ?? forms.at(-1);
    return form ? fitted(form, SMALL, width) : "";
  }

  // Text that fits a width, by its middle left out. Widths of characters are measured once.
  const ruler = document.createElement("canvas").getContext("2d");
  const widths = new Map();
  function widthOf(words, font) {
    if (!widths.has(font)) widths.set(font, new Map());
    const known = widths.get(font);
    let sum = 0;
    for (const char of words) {
      if (!known.has(char)) { ruler.font = font; known.set(char, ruler.measureText(char).width); }
      sum += known.get(char);
    }
    return sum;
  }
  function fitted(words, font, width) {
    const full = widthOf(words, font);
    if (full <= width) return words;
    const room = Math.max(3, Math.floor((words.length * width) / full) - 1);
    return `${words.slice(0, Math.ceil(room * 0.4))}…${words.slice(words.length - Math.floor(room * 0.6))}`;
  }
  const FAMILY = getComputedStyle(document.body).fontFamily;
  const TITLE = `600 13px ${FAMILY}`;
  const SMALL = `11px ${FAMILY}`;
  const TAG = `600 10.5px ${FAMILY}`;
  const MOST_HITS = 40;
  // Boxes of a group that are drawn at once; of a larger one those on the screen and this many pixels around it.
  const MOST_AT_ONCE = 60;
  const AROUND = 400;
  const MARGIN = 16;

  function drawBox(view, item, [x, y, w, h], isPort) {
    const small = isPort || h < 34;
    const tag = isPort ? "" : tagOf(item);
    const tagWidth = tag ? widthOf(tag, TAG) + 14 : 0;
    const kinds = ["box", item.isGroup ? "opens" : "leaf", isPort ? "port" : item.kind, item.status ?? ""];
    const box = draw("g", {
      class: kinds.join(" "), transform: `translate(${x},${y})`, role: "button", tabindex: item === view.current ? 0 : -1,
      "aria-label": isPort ? `${item.label}, ${item.of ? "leaves" : "comes into"} this group` : summaryOf(item),
    });
    for (const shift of item.copies ? [8, 4] : []) {
      box.append(draw("rect", { class: "card", x: shift, y: -shift, width: w, height: h, rx: 8 }));
    }
    box.append(draw("rect", { class: "body", width: w, height: h, rx: small ? Math.min(h / 2, 12) : 8 }));
    if (!item.isGroup && !small && !["input", "output"].includes(item.kind)) {
      box.append(draw("path", { class: `stripe ${familyOf(item)}`, d: `M8 0h-1a7 7 0 0 0-7 7v${h - 14}a7 7 0 0 0 7 7h1z` }));
    }
    const cells = item.copies ? item.inside.filter((child) => child.status) : [];
    const middle = (cells.length ? h - 12 : h) / 2;
    const left = 16;
    const second = small ? "" : secondLine(item, w - left - 6);
    const base = middle + (second ? -3 : 4.5);
    if (small) box.append(text("title middle", w / 2, base, fitted(titleOf(item), TITLE, w - 8)));
    else box.append(text("title", left, base, fitted(titleOf(item), TITLE, w - left - 8 - (tag ? tagWidth + 4 : 0))));
    if (second) box.append(text("second", left, middle + 13, second));
    if (tag) {
      const isGone = !item.copies && !item.status && item.isGroup;
      box.append(draw("g", { class: isGone ? "tag gone" : "tag" }, draw("rect", { x: w - 7 - tagWidth, y: base - 12.5, width: tagWidth, height: 17, rx: 8.5 }),
        text("", w - 7 - tagWidth / 2, base, tag)));
    }
    if (item.status === "replaced" && item.kind !== "surrogate") {
      box.append(draw("rect", { class: "hatch", width: w, height: h, rx: 8 }));
    }
    const room = (w - 24) / cells.length;
    cells.forEach((cell, i) => box.append(draw("rect", {
      class: `cell ${cell.status}`, x: 12 + i * room, y: h - 13, width: Math.max(room - (room > 5 ? 2 : 0.5), 1), height: 7, rx: 1.5,
    })));
    box.addEventListener("click", () => act(item, isPort));
    box.addEventListener("focus", () => select(item));
    box.addEventListener("pointerenter", () => pair(item, true));
    box.addEventListener("pointerleave", () => pair(item, false));
    return box;
  }
  function text(kind, x, y, words) {
    const element = draw("text", { class: kind, x, y });
    element.textContent = words;
    return element;
  }
  function act(item, isPort) {
    if (item.of) focus(item.of);
    else if (isPort) open(item.parent, item);
    else if (item.isGroup) open(item);
    else focus(item);
  }

  // A line through the points of an edge (x, y, x, y, …), upright where it leaves and where it arrives.
  function curve(points) {
    let [x, y] = points;
    let path = `M${x} ${y}`;
    for (let i = 2; i < points.length; i += 2) {
      const [u, v] = [points[i], points[i + 1]];
      path += x === u ? `V${v}` : `C${x} ${(y + v) / 2} ${u} ${(y + v) / 2} ${u} ${v}`;
      [x, y] = [u, v];
    }
    return path;
  }
  function valueFrom(item) {
    if (!item.isGroup) return item.value;
    const values = (item.outputs ?? []).map((place) => item.graph.values[item.graph.nodes[place][5]]);
    return new Set(values).size === 1 ? values[0] : null;
  }

  // The layout is part of the document, but for the parts of a model in parts, which stand one below another.
  function layoutOf(group) {
    if (group.layout != null) return data.layouts[group.layout];
    const [width, height, gap] = [280, 56, 26];
    return {
      width, height: group.inside.length * (height + gap) - gap, routes: [],
      boxes: group.inside.map((_, i) => [0, i * (height + gap), width, height]),
    };
  }
  // Draws the open group: all of it, or of a large one what can be seen, and more when it is scrolled to.
  function drawLevel(view) {
    const group = view.open;
    const layout = layoutOf(group);
    const items = [...group.inside, ...group.ports];
    const lines = draw("g", { class: "edges", "aria-hidden": "true" });
    view.size = [layout.width + 2 * MARGIN, layout.height + 2 * MARGIN];
    view.picture = draw("svg", {
      viewBox: [-MARGIN, -MARGIN, ...view.size].join(" "), role: "group", "aria-label": `${view.name}: ${nameOf(group)}`,
    }, lines);
    view.places = new Map(layout.boxes.map((place, i) => [items[i], { place, isPort: i >= group.inside.length }])
      .filter(([, { place }]) => place[2]));
    view.boxes = new Map();
    view.lines = { element: lines, waiting: layout.routes.map(([source, , points]) => ({ source: items[source], points })), named: new Set() };
    view.current = view.places.keys().next().value;
    view.canvas.replaceChildren(view.picture);
    view.pane.querySelector(".figures").replaceChildren(...figuresOf(group));
    resize(view);
    // A wide picture begins where its first box is.
    const [x, , w] = [...view.places.values()].map(({ place }) => place).reduce((best, one) => (one[1] < best[1] ? one : best), [0, Infinity, 0]);
    view.canvas.scrollTo((x + w / 2 + MARGIN) * view.scale - view.canvas.clientWidth / 2, 0);
    reveal(view);
  }
  function reveal(view, all = view.places.size <= MOST_AT_ONCE) {
    const { canvas, scale, lines } = view;
    const [left, top] = [canvas.scrollLeft / scale - MARGIN - AROUND, canvas.scrollTop / scale - MARGIN - AROUND];
    const [right, bottom] = [left + canvas.clientWidth / scale + 2 * AROUND, top + canvas.clientHeight / scale + 2 * AROUND];
    const near = (x, y, u, v) => all || (x <= right && u >= left && y <= bottom && v >= top);
    lines.waiting = lines.waiting.filter((line) => {
      const [xs, ys] = [line.points.filter((_, i) => i % 2 === 0), line.points.filter((_, i) => i % 2)];
      if (!near(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys))) return true;
      lines.element.append(draw("path", { d: curve(line.points), "marker-end": "url(#arrow)" }));
      const words = lines.named.has(line.source) ? "" : shapeOf(valueFrom(line.source));
      if (words) lines.element.append(text("", xs[0] + 6, ys[0] + 13, fitted(words, SMALL, 160)));
      lines.named.add(line.source);
      return false;
    });
    for (const [item, { place: [x, y, w, h] }] of view.places) if (near(x, y, x + w, y + h)) boxOf(view, item);
  }
  function boxOf(view, item) {
    let box = view.boxes.get(item);
    const known = view.places.get(item);
    if (!box && known) {
      box = drawBox(view, item, known.place, known.isPort);
      view.boxes.set(item, box);
      view.picture.append(box);
    }
    return box;
  }

  let zoom = 1;
  function resize(view) {
    const fit = Math.min(1.15, Math.max(0.6, (view.canvas.clientWidth - 12) / view.size[0]));
    view.scale = fit * zoom;
    view.picture.setAttribute("width", Math.round(view.size[0] * view.scale));
    view.picture.setAttribute("height", Math.round(view.size[1] * view.scale));
  }
  function zoomTo(factor) {
    zoom = Math.min(4, Math.max(0.2, factor));
    for (const view of views) { resize(view); reveal(view); }
  }

  const figuresOf = (item) => COSTS.filter(([key]) => item[key] != null).map(([key, name, text]) =>
    html("span", {}, html("b", {}, text(item[key])), ` ${name}`));

  // What is known of one item, next to its counterpart.
  function select(item) {
    const twin = counterpart(item);
    const [before, after] = item.view.name === "before" ? [item, twin] : [twin, item];
    const cost = (key, words) => (twin && twin[key] !== item[key] ? `${words(before[key])} → ${words(after[key])}` : words(item[key]));
    const rows = [
      ["Kind", item.kind], ["Class", item.type], ["Status", item.status], ["Stands in", item.surrogate], ["Copies", item.copies],
      ["Replaced", item.isGroup && !item.status && views.length > 1 ? replacedIn(item) : null], ["Calls", item.target], ["Value", item.value?.text],
      ...COSTS.map(([key, name, words]) => [name[0].toUpperCase() + name.slice(1), item[key] == null ? null : cost(key, words)]),
      ["Nodes", typeof item.nodes === "number" ? item.nodes : null], ["Reason", item.reason], ["Name", item.name], ["Source", item.source],
    ].filter(([, value]) => value != null && value !== "");
    $("details").replaceChildren(
      html("h3", {}, titleOf(item)), html("p", { class: "where" }, [views.length > 1 && item.view.name, nameOf(item)].filter(Boolean).join(" · ")),
      html("dl", {}, ...rows.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, String(value))])),
    );
    for (const box of document.querySelectorAll(".selected")) box.classList.remove("selected");
    item.view.boxes.get(item)?.classList.add("selected");
  }
  function pair(item, on) {
    otherView(item.view)?.boxes.get(counterpart(item))?.classList.toggle("paired", on);
  }

  // Opening a group opens its counterpart beside it, or that of the nearest group around it that has one.
  function open(group, target) {
    const view = group.view;
    const beside = otherView(view);
    view.open = group;
    if (beside) {
      let around = group;
      while (!counterpart(around)) around = around.parent;
      beside.open = counterpart(around);
    }
    history.pushState(views.map((one) => placeOf(one.open)), "");
    show(view);
    const first = view.places.has(target) ? target : view.current;
    if (first) focus(first);
    if (target && first !== target) select(target);
    $("status").textContent = `${nameOf(group)} is open, with ${group.inside.length} boxes`;
  }
  function show(view) {
    zoom = 1;
    views.forEach(drawLevel);
    const steps = pathOf(view.open);
    $("trail").replaceChildren(...steps.map((item, i) => {
      const step = html("button", { type: "button", "aria-current": i === steps.length - 1 ? "true" : null }, titleOf(item));
      step.addEventListener("click", () => open(item, steps[i + 1]));
      return html("li", {}, step);
    }));
    $("back").disabled = !view.open.parent;
    $("back").onclick = () => up(view);
    select(view.open);
  }
  function up(view) {
    if (view.open.parent) open(view.open.parent, view.open);
  }
  function focus(item) {
    const { view } = item;
    const box = boxOf(view, item);
    view.boxes.get(view.current)?.setAttribute("tabindex", -1);
    view.current = item;
    box.setAttribute("tabindex", 0);
    box.focus();
  }
  // Where a group stands in the document, for the history of the browser.
  const placeOf = (group) => (group.graph ? [group.graph.id, group.place] : null);
  function at(view, place) {
    return place ? view.graphs.find((graph) => graph.id === place[0]).groups[place[1]] : view.root;
  }

  // Arrow keys go to the nearest box in their direction.
  const WAYS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  const middleOf = ([x, y, w, h]) => [x + w / 2, y + h / 2];
  function step(view, [dx, dy]) {
    const [fromX, fromY] = middleOf(view.places.get(view.current).place);
    let [best, least] = [null, Infinity];
    for (const [item, { place }] of view.places) {
      const [toX, toY] = middleOf(place);
      const along = (toX - fromX) * dx + (toY - fromY) * dy;
      const cost = along + 2.5 * Math.abs((toX - fromX) * dy + (toY - fromY) * dx);
      if (along > 1 && cost < least) [best, least] = [item, cost];
    }
    if (best) focus(best);
  }
  for (const view of views) {
    view.canvas.addEventListener("scroll", () => requestAnimationFrame(() => reveal(view)), { passive: true });
    view.pane.addEventListener("keydown", (event) => {
      const { current } = view;
      const isOn = view.boxes.get(current) === document.activeElement;
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Escape" || event.key === "Backspace") up(view);
      else if (isOn && WAYS[event.key]) step(view, WAYS[event.key]);
      else if (isOn && (event.key === "Enter" || event.key === " ")) act(current, view.places.get(current).isPort);
      else return;
      event.preventDefault();
    });
  }
  addEventListener("beforeprint", () => views.forEach((view) => reveal(view, true)));

  // Search over the names of modules and nodes.
  const [field, list] = [$("search"), $("results")];
  let index = null;
  // Made when it is first asked for: most pages are read without a search.
  function indexed() {
    const items = views.flatMap((view) => view.graphs.flatMap((graph) => [...graph.groups, ...graph.nodes]));
    return items.filter((item) => item.parent).map((item) => {
      const name = nameOf(item);
      return { item, name, words: [name, item.name, item.type, item.target, item.kind].join(" ").toLowerCase() };
    });
  }
  let hits = [];
  let marked = -1;
  function mark(place) {
    marked = place;
    [...list.children].forEach((entry, i) => entry.setAttribute("aria-selected", i === marked));
    if (marked < 0) field.removeAttribute("aria-activedescendant");
    else field.setAttribute("aria-activedescendant", `hit-${marked}`);
    list.children[marked]?.scrollIntoView({ block: "nearest" });
  }
  function unfold(shown) {
    list.hidden = !shown;
    field.setAttribute("aria-expanded", shown);
  }
  function find() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    hits = [];
    index ??= indexed();
    for (const entry of words.length ? index : []) {
      if (words.every((word) => entry.words.includes(word))) hits.push(entry);
      if (hits.length === MOST_HITS) break;
    }
    list.replaceChildren(...hits.map((hit, i) => {
      const about = [views.length > 1 && hit.item.view.name, hit.item.kind].filter(Boolean).join(" · ");
      const entry = html("li", { role: "option", id: `hit-${i}` }, html("span", {}, hit.name), html("small", {}, about));
      entry.addEventListener("pointerdown", (event) => { event.preventDefault(); jump(hit.item); });
      return entry;
    }));
    unfold(hits.length > 0);
    $("status").textContent = words.length ? `${hits.length}${hits.length === MOST_HITS ? " or more" : ""} found` : "";
    mark(hits.length ? 0 : -1);
  }
  function jump(item) {
    unfold(false);
    $("picture").scrollIntoView({ behavior: "instant" });
    open(item.parent, item);
    boxOf(item.view, item)?.scrollIntoView({ behavior: "instant", block: "nearest", inline: "center" });
  }
  field.addEventListener("input", find);
  field.addEventListener("focus", () => unfold(hits.length > 0));
  field.addEventListener("blur", () => unfold(false));
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && hits.length) mark((marked + 1) % hits.length);
    else if (event.key === "ArrowUp" && hits.length) mark((marked + hits.length - 1) % hits.length);
    else if (event.key === "Enter" && hits[marked]) jump(hits[marked].item);
    else if (event.key === "Escape") { field.value = ""; find(); field.blur(); } else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target === field) return;
    event.preventDefault();
    field.focus();
    field.select();
  });

  // Names of blocks in tables lead to their boxes.
  const blocks = new Map();
  for (const group of views[0].graphs.flatMap((graph) => graph.groups)) {
    if (group.kind === "block") for (const name of [...(group.aliases ?? []), group.name]) blocks.set(name, group);
  }
  for (const button of document.querySelectorAll("button[data-block]")) {
    const block = blocks.get(button.dataset.block);
    if (block) button.addEventListener("click", () => jump(block)); else button.disabled = true;
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  function theme(isDark) {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    $("theme").setAttribute("aria-pressed", isDark);
  }
  theme(dark.matches);
  dark.addEventListener("change", () => theme(dark.matches));
  $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
  $("closer").addEventListener("click", () => zoomTo(zoom * 1.25));
  $("farther").addEventListener("click", () => zoomTo(zoom / 1.25));
  $("fit").addEventListener("click", () => zoomTo(1));
  addEventListener("resize", () => zoomTo(zoom));
  addEventListener("popstate", ({ state }) => {
    if (!state) return;
    views.forEach((view, i) => { view.open = at(view, state[i]); });
    show(views[0]);
  });
  history.replaceState(views.map((view) => placeOf(view.open)), "");
  show(views[0]);
})();
