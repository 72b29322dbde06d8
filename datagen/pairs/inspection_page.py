"""The HTML page that `inspection` fills in: its style and its filtering script."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Pairs: $title</title>
<style>
:root { color-scheme: light dark; --yes: #2e8b57; --no: #c8553d; --line: #8885; --soft: #8882; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1400px; padding: 1rem 1.5rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { font-size: .95rem; margin: 0 0 .4rem; }
h3 small, .ends, .hint { font-weight: normal; opacity: .7; }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2rem; } dt { opacity: .7; font-size: .85em; } dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption { display: flex; justify-content: space-between; align-items: end; gap: .6rem; min-height: 2.9em; }
figcaption span { overflow-wrap: anywhere; }
svg { width: 100%; height: 64px; background: var(--soft); } rect.yes { fill: var(--yes); } rect.no { fill: var(--no); }
.ends { display: flex; justify-content: space-between; font-size: .8em; }
.bar { display: inline-block; height: .8em; background: var(--no); }
.reasons td { padding: .1rem .6rem .1rem 0; }
.controls { position: sticky; top: 0; z-index: 1; background: Canvas; padding: .6rem 0; display: flex; flex-wrap: wrap;
  gap: .8rem; border-bottom: 1px solid var(--line); }
.controls input[type=number] { width: 4.5em; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; margin-top: 1rem; }
article { border: 1px solid var(--line); border-left: 4px solid var(--yes); border-radius: 4px; padding: .6rem; }
article.rejected { border-left-color: var(--no); }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 2px; }
.row img { width: 100%; display: block; } .none { display: grid; place-items: center; background: var(--soft);
  font-size: .75em; text-align: center; min-height: 4rem; }
article p, article ul { margin: .4rem 0 0; overflow-wrap: anywhere; }
article ul { color: var(--no); padding-left: 1.2em; }
details table { font-size: .85em; } details td { padding-right: 1rem; }
</style>
</head>
<body>
<h1>Pairs: $title</h1>
<dl>$summary</dl>
<h2>Why pairs were rejected</h2>
$reasons
<h2>Figures</h2>
<p class="hint">Medians in bold; green accepted, red rejected.</p>
<div class="charts">
$histograms
</div>
<p class="hint">$constants</p>
<h2>Pairs</h2>
<p class="hint">$shown: before, sketch, after, difference (times $gain).</p>
<div class="controls">
<label>Show
  <select id="state"><option value="">all</option><option>accepted</option><option>rejected</option></select></label>
<label>Split
  <select id="split"><option value="">both</option><option>train</option><option>val</option></select></label>
<label>Feature <select id="feature"><option value="">all</option>$features</select></label>
<label>Parameter <select id="param"><option value="">any</option>$params</select></label>
<label>Degree <input id="least" type="number" min="0" max="1" step="0.05" placeholder="0"> to
  <input id="most" type="number" min="0" max="1" step="0.05" placeholder="1"></label>
<label>Sort by <select id="sort"><option value="">id</option>$figures</select></label>
<label><input type="checkbox" id="down"> descending</label>
<label>Contains <input id="text" type="search" placeholder="id, portrait, parameter, reason"></label>
<output id="count"></output>
</div>
<div class="sheet" id="sheet">
$cards
</div>
<script>
"use strict";
const sheet = document.getElementById("sheet");
const cards = Array.from(sheet.children);
const filters = ["state", "split", "feature", "param", "least", "most", "text"];
const controls = Object.fromEntries(
  [...filters, "sort", "down"].map(id => [id, document.getElementById(id)]));
const figures = new Map(cards.map(card => [card, new Map(
  Array.from(card.querySelectorAll("[data-figure]"), cell => [cell.dataset.figure, parseFloat(cell.textContent)]))]));
function update() {
  const wanted = controls.text.value.toLowerCase();
  const least = parseFloat(controls.least.value), most = parseFloat(controls.most.value);
  let count = 0;
  for (const card of cards) {
    const shown = (!controls.state.value || card.dataset.state === controls.state.value)
      && (!controls.split.value || card.dataset.split === controls.split.value)
      && (!controls.feature.value || card.dataset.feature === controls.feature.value)
      && (!controls.param.value || card.dataset.params.split(String.fromCharCode(10)).includes(controls.param.value))
      && !(parseFloat(card.dataset.degree) < least) && !(parseFloat(card.dataset.degree) > most)
      && card.dataset.text.includes(wanted);
    card.hidden = !shown;
    count += shown;
  }
  document.getElementById("count").textContent = count + " shown";
}
function sort() {
  const name = controls.sort.value, sign = controls.down.checked ? -1 : 1;
  const place = new Map(cards.map((card, index) => [card, index]));
  const key = card => name ? figures.get(card).get(name) : place.get(card);
  const rank = card => { const value = key(card); return Number.isFinite(value) ? sign * value : Infinity; };
  const order = (a, b) => { const x = rank(a), y = rank(b); return x === y ? place.get(a) - place.get(b) : x - y; };
  sheet.append(...cards.slice().sort(order));
}
for (const id of filters) controls[id].addEventListener("input", update);
for (const id of ["sort", "down"]) controls[id].addEventListener("input", sort);
update();
</script>
</body>
</html>
""")
