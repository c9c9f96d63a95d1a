import importlib.util, pathlib, sys

here = pathlib.Path.cwd()
for home in (here, *here.parents):  # a clone, or a folder with adamlib unpacked in it
    if (home / "adamlib" / "variants").is_dir():
        sys.path[:0] = [str(home), str(home / "notebooks")]
        break
found = importlib.util.find_spec("adamlib")
if found and not (pathlib.Path(str(found.origin)).parent / "variants").is_dir():
    raise ImportError(
        f"Another package named adamlib is in front ({found.origin}). Open this "
        "notebook inside the repository, or beside its own adamlib, and restart "
        "its kernel."
    )
if not found or not importlib.util.find_spec("course"):
    raise ImportError(
        "This chapter needs the packages adamlib and course. Clone the repository and "
        "run `make lab`, or take the chapter's Kaggle/Colab file, which carries both."
    )
import course
