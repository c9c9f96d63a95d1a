"""The figure of the two windows for the back row: its pictures alone, in large print, moved by keys or by the pointer.

It is the page that the chapter stores (course/windows.html), with other measures and without its controls; the key k
shows them. On a slide, PageUp and PageDown turn the deck's pages and Escape gives the keys back to it.
"""

PRINT = 33  # pixels; the figure's own 14 units of print are drawn so large
LARGE = """
<style>body { margin: 0; HOW }</style>
<script>
{ // the figure has its own root, so its style is added there
  const root = document.querySelector("[data-adam-windows]").shadowRoot, fig = root.querySelector(".fig");
  const style = document.createElement("style");
  style.textContent = `
    .fig, .fig.page { max-width: none; padding: 0 4px; font-size: PRINTpx; line-height: 1.25; }
    .fig:not(.knobs) :is(.row, .say, details) { display: none; }
    .fig.knobs { font-size: 17px; }
    .title { display: TITLE; font-size: PRINTpx; margin: 6px 0; }
    .panels { flex-wrap: nowrap; gap: 20px; } .panels > div { flex: 1 1 0; }
    .ratio, .bound { stroke-width: 1.6; } .later { stroke-width: 1.2; }`;
  root.append(style);
  let knobs = false;
  addEventListener("keydown", (e) => {
    const turn = parent !== window && { PageDown: "next", PageUp: "prev" }[e.key];
    if (e.key === "k") { knobs = !knobs; fig.classList.toggle("knobs", knobs); }
    if (turn) parent.Reveal[turn]();
    if (turn || e.key === "Escape") parent.focus();
  }, true);
  // Each drawing sets the class anew; the controls stay as they were chosen.
  new MutationObserver(() => { if (fig.classList.contains("knobs") !== knobs) fig.classList.toggle("knobs", knobs); })
    .observe(fig, { attributes: true, attributeFilter: ["class"] });
}
</script>
"""


def projected(page, height, title=True, how=""):
    """The HTML of the figure (course.windows.page, or as stored) for a projector.

    height: of all that it may take, in pixels of a page 1280 wide.  title: it says its own claim, above the pictures.
    how: CSS of the page's body. Raises ValueError where the figure is not the one that this knows.
    """
    scale = PRINT / 14
    floor = int(((height - (PRINT * 1.25 + 12) * title) / scale - 24 - 42) / 2)
    for old, new in {
        "const FLOOR = 165,": f"const FLOOR = {floor},",  # the height of each picture, in units
        "ticks(1, n, W / 90)": "ticks(1, n, W / 60)",  # large numbers, but not one alone
        "min(480, pictures[0].clientWidth || 480)": f"(pictures[0].clientWidth || 600) / {scale:.3f}",
    }.items():
        if page.count(old) != 1:
            raise ValueError(f"the figure has {page.count(old)} places {old!r}: tools/projector.py expects one")
        page = page.replace(old, new)
    if '"page":true' not in page:  # keys are taken wherever the focus is
        page = page.replace("data-adam-windows='{", "data-adam-windows='{\"page\":true,", 1)
    large = LARGE.replace("PRINT", str(PRINT)).replace("TITLE", "block" if title else "none").replace("HOW", how)
    return page + large
