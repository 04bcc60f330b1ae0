// Draws the figures, switches their variants and the theme. Knows no score.
(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);

  // "@arm0/0.2" to the style sheet's colour of --arm0 at that opacity.
  function colourOf(token) {
    const [name, opacity] = token.slice(1).split("/");
    probe.style.color = `var(--${name})`;
    const shown = getComputedStyle(probe).color;
    const [r, g, b, a] = shown.match(/[\d.]+/g);
    return `rgba(${r},${g},${b},${opacity ?? a ?? 1})`;
  }

  function coloured(node, key) {
    if (Array.isArray(node)) return node.map((inner) => coloured(inner, key));
    if (node && typeof node === "object") {
      return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, coloured(v, k)]));
    }
    const isColour = typeof node === "string" && /colou?r$/.test(key) && node.startsWith("@");
    return isColour ? colourOf(node) : node;
  }

  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    doubleClick: "reset",
  };

  async function draw(place) {
    const { data, layout } = coloured(figures[place.dataset.figure], "");
    layout.font.family = getComputedStyle(document.body).fontFamily;
    // A finger that scrolls the page must not zoom a plot.
    layout.dragmode = touch ? false : "zoom";
    await Plotly.react(place, data, layout, config);
    place.dataset.drawn = "";
  }

  const places = [...document.querySelectorAll("[data-figure]")];
  const pause = () => new Promise((resume) => setTimeout(resume, 0));

  async function drawShown(again) {
    delete root.dataset.drawn;
    for (const place of places) {
      const shown = !place.parentElement.hidden;
      if (shown && (again || !("drawn" in place.dataset))) {
        await draw(place);
        await pause();
      } else if (!shown && again) {
        delete place.dataset.drawn;
      }
    }
    root.dataset.drawn = document.querySelectorAll("[data-figure][data-drawn]").length;
  }

  for (const card of document.querySelectorAll("[data-sizes]")) {
    const sizes = card.dataset.sizes.split(",").map(Number);
    card.addEventListener("change", () => {
      const chosen = [...card.querySelectorAll("input:checked")].map((input) => Number(input.value));
      const index = chosen.reduce((sum, value, i) => sum * sizes[i] + value, 0);
      card.querySelectorAll(".view").forEach((view, i) => { view.hidden = i !== index; });
      drawShown(false);
    });
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = { get: () => { try { return localStorage.getItem("millrace-theme"); } catch { return null; } },
    set: (name) => { try { localStorage.setItem("millrace-theme", name); } catch { /* a file may keep nothing */ } } };
  if (["light", "dark"].includes(kept.get())) root.dataset.theme = kept.get();
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    kept.set(root.dataset.theme);
    drawShown(true);
  });
  dark.addEventListener("change", () => drawShown(true));
  drawShown(false);
})();
