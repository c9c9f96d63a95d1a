"""Write the figure of the two windows as a page for the projector, without network: build/figure.html.

    python notebooks/tools/figure.py

It is in large print and without controls: the key k shows them. 1 to 7 choose the gradients, the arrows move in time and
change a gradient, space plays.
"""

import argparse
import sys

import matplotlib
from execute import ROOT
from projector import projected

matplotlib.use("agg")
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]
from course import figures, windows  # noqa: E402

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Adam's two windows</title>
<body>
{figure}
</body>
</html>
"""


def living(alone=False):
    """The figure's HTML as it opens on the front page: noise, which gives no vote of a deck away."""
    with matplotlib.rc_context():
        figures.use_style()
        now = windows.moment("noise", 40)
        seen = windows.see(now)
        fig = windows.still(now, seen)
        figure = windows.page(now, fig, windows.alt(now, seen), alone)
        windows.plt.close(fig)
    return figure


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PAGE.format(figure=projected(living(alone=True), height=710)), encoding="utf-8")


def main(arguments=None):
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args(arguments)
    write(ROOT / "build" / "figure.html")
    print("build/figure.html is ready: open it in a browser, no server and no network needed")


if __name__ == "__main__":
    main()
