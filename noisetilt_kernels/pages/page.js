"use strict";
// Filter of the images, the large view, and the refresh of a served page. Bokeh draws the charts.

const filter = document.getElementById("filter");
const cards = [...document.querySelectorAll("figure[data-method]")];

function applyFilter() {
  const wanted = [...new FormData(filter)].filter(([, value]) => value !== "");
  for (const card of cards) card.hidden = wanted.some(([name, value]) => card.dataset[name] !== value);
  for (const section of document.querySelectorAll("section[data-part]")) {
    section.hidden = wanted.some(([name, value]) => name === "part" && section.dataset.part !== value);
  }
  const count = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").value = `${count} of ${cards.length} shown`;
  history.replaceState(null, "", `#${new URLSearchParams(wanted)}`);
  for (const charts of globalThis.Bokeh?.documents ?? []) {
    for (const section of document.querySelectorAll("section[data-part]")) {
      charts.get_model_by_name(`shown ${section.id}`)?.change.emit();
    }
  }
}

if (filter !== null) {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (filter.elements[name] !== undefined) filter.elements[name].value = value;
  }
  filter.addEventListener("change", applyFilter);
  applyFilter();
}

const dialog = document.getElementById("large");
let current = null;

function show(card) {
  const link = card.querySelector("a");
  const small = card.querySelector("img");
  const video = card.dataset.video !== undefined;
  const large = document.createElement(video ? "video" : "img");
  if (video) {
    Object.assign(large, { controls: true, loop: true, autoplay: true, muted: true });
  } else {
    large.alt = small.alt;
    large.onload = () => large.classList.toggle("tiny", large.naturalWidth <= 192);
  }
  large.onerror = () => {
    large.onerror = null;
    large.replaceWith(Object.assign(small.cloneNode(), { className: "tiny" }));
  };
  large.src = link.href;
  dialog.querySelector(".view").replaceChildren(large);
  dialog.querySelector(".text").textContent = small.alt;
  current = card;
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const visible = cards.filter((card) => !card.hidden && card.querySelector("a") !== null);
  const next = visible[visible.indexOf(current) + by];
  if (next !== undefined) show(next);
}

for (const card of cards) {
  card.querySelector("a")?.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab or window, as with any link
    event.preventDefault();
    show(card);
  });
}
if (dialog !== null) {
  dialog.addEventListener("keydown", (event) => {
    if (event.target.tagName === "VIDEO") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => {
    dialog.querySelector(".view").replaceChildren();
    current?.querySelector("a").focus();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.dataset.close !== undefined) dialog.close();
    if (event.target.dataset.step !== undefined) step(Number(event.target.dataset.step));
  });
}

// charts read the colours of the page when they are drawn
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());

const live = document.getElementById("live");
if (live !== null) {
  live.checked = sessionStorage.getItem("live") !== "no";
  live.addEventListener("change", () => sessionStorage.setItem("live", live.checked ? "yes" : "no"));
  addEventListener("load", () => {
    // a large page takes the server seconds: ask less often then
    const [visit] = performance.getEntriesByType("navigation");
    const timer = setInterval(async () => {
      if (!live.checked || document.hidden || dialog?.open) return;
      const answer = await fetch(location.pathname, { method: "HEAD", cache: "no-store" }).catch(() => null);
      if (!answer?.ok || answer.headers.get("ETag") === document.body.dataset.stamp) return;
      clearInterval(timer); // one more reload would end this one before the server has made the page
      location.reload();
    }, Math.max(2000, 5 * (visit.responseEnd - visit.requestStart)));
  });
}
