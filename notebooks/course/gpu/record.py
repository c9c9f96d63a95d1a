"""What a run on a GPU has stored: found, summed up in words, and drawn for chapters 05 and 06."""

import json
import pathlib

from course import RECORDED

SCHEMA = "course.gpu 1"
NOTHING = "No run on a GPU is recorded here, so no GPU result is shown."


def records(folder: pathlib.Path = RECORDED) -> list[dict]:
    """The records of GPU runs in the folder, the oldest first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("gpu-*.json"))]
    return [record for record in found if record.get("schema") == SCHEMA and record["device"] == "cuda"]


def results(record: dict, part: str) -> dict[str, dict]:
    """Name and result of each item of a part; empty where it did not run."""
    return record["parts"].get(part, {}).get("results", {})


def machine(record: dict) -> str:
    """The device, torch and the day, in a few words."""
    gpu = record["hardware"].get("gpu") or record["hardware"]["cpu"]
    return f"{gpu}, torch {record['software']['torch']}, {record['date']}"


def troubles(record: dict) -> list[str]:
    """What went wrong, a line each: tests that failed, processes that died, cells and items with errors."""
    found = []
    for part, entry in record["parts"].items():
        for name, result in entry["results"].items():
            why = result.get("crashed") or result.get("error")
            if part == "tests" and result.get("outcome") in ("failed", "not collected"):
                why = result["why"].splitlines()[0]
            elif part == "chapters":
                why = why or "; ".join(f"cell {cell}: {text}" for cell, text in result.get("errors", {}).items())
            elif part == "parity" and result.get("failed"):
                why = "; ".join(f"{case}: {text}" for case, text in result["failed"].items())
            elif part == "blocks" and not why:
                why = "; ".join(f"{side}: {seen['error']}" for side, seen in result.items() if "error" in seen)
            if why:
                found.append(f"{part}, {name}: {why}")
    return found


def summary(record: dict) -> str:
    """The record in some ten lines."""
    lines = [machine(record)]
    if tests := results(record, "tests"):
        outcomes = [result.get("outcome", "crashed") for result in tests.values()]
        lines.append("tests: " + ", ".join(f"{outcomes.count(word)} {word}" for word in sorted({*outcomes})))
    if blocks := results(record, "blocks"):
        sides = [side for side in ("cuda", "tape") if any(side in result for result in blocks.values())]
        for side in sides:
            verdicts = [result[side].get("verdict") for result in blocks.values() if side in result]
            lines.append(f"blocks, {side}: {verdicts.count('permitted')} permitted, {verdicts.count('refused')} refused")
        both = [(result["cuda"]["verdict"], result["tape"]["verdict"]) for result in blocks.values()
                if "verdict" in result.get("cuda", {}) and "verdict" in result.get("tape", {})]  # fmt: skip
        if both:
            lines.append(f"blocks, same verdict: {sum(a == b for a, b in both)} of {len(both)}")
    for name, result in results(record, "parity").items():
        if "cases" in result:
            distance = result["largest_distance_in_lr"]
            lines.append(f"parity, {name}: same bits in {result['same_bits']} of {result['cases']}"
                         + ("" if distance is None else f", at most {distance:.1e} lr apart"))
    predicted = results(record, "race").get("predictions", {})
    for row in rows(record):
        said = predicted[row["name"]]["ours"]
        lines.append(f"race, {row['name']}: ours {1e6 * row['our_seconds'][1]:.0f} µs, predicted "
                     f"{1e6 * said['seconds']:.0f} by {said['decides']}; torch / ours {row['ratio'][1]:.2f}")
    lines += [f"trouble: {text}" for text in troubles(record)]
    lines += [f"not complete: {part}" for part, entry in record["parts"].items() if not entry["complete"]]
    return "\n".join(lines)


def rows(record: dict) -> list[dict]:
    """The races that were run, each with its name."""
    return [{"name": name} | result for name, result in results(record, "race").items() if "ratio" in result]


def picture(record: dict, variants=None):
    """Steps of torch and of adamlib as measured, with the prediction, as a figure; None where nothing was raced.

    A panel per set of tensors and a row per variant and mode; a dot is a median, a bar its quartiles, a tick the
    prediction. variants: names, to draw these alone.
    """
    import matplotlib.pyplot as plt

    from course import figures

    raced = [row for row in rows(record) if variants is None or row["variant"] in variants]
    if not raced:
        return None
    predicted = results(record, "race")["predictions"]
    sets = [*dict.fromkeys(row["set"] for row in raced)]
    counts = [sum(row["set"] == name for row in raced) for name in sets]
    fig, axes = plt.subplots(
        len(sets), figsize=(9, 1.6 + 0.5 * sum(counts) + 0.4 * len(sets)), height_ratios=counts, squeeze=False
    )
    looks = {"torch": ("grey", "s", 0.15), "ours": ("blue", "o", -0.15)}
    for name, ax in zip(sets, axes[:, 0]):
        those = [row for row in raced if row["set"] == name]
        for y, row in enumerate(those):
            for who, (color, marker, shift) in looks.items():
                low, middle, high = (1e6 * s for s in row["torch_seconds" if who == "torch" else "our_seconds"])
                look = dict(color=figures.COLORS[color], ls="-")
                ax.plot([low, high], [y + shift] * 2, **look)
                label = {"torch": "torch", "ours": "adamlib"}[who] if (y, name) == (0, sets[0]) else None
                ax.plot(middle, y + shift, marker, ms=8, color=figures.COLORS[color], label=label)
                said = 1e6 * predicted[row["name"]][who]["seconds"]
                ax.plot(said, y + shift, "|", ms=12, mew=2.5, color=figures.COLORS["red"],
                        label="predicted" if label == "torch" else None)
        ax.set_yticks(range(len(those)), [f"{row['variant']}, {row['mode']}" for row in those])
        ax.set(xscale="log", ylim=(len(those) - 0.5, -0.5))
        ax.set_title(name, fontsize=14)
    axes[-1, 0].set_xlabel("µs per step")
    fig.legend(loc="outside upper right", ncols=3)
    fig.suptitle(machine(record), x=0.02, ha="left", fontsize=14)
    return fig


def show(variants=None, folder: pathlib.Path = RECORDED) -> None:
    """Draw what is recorded of GPUs, a figure each, or say that there is nothing.

    variants: names of ``course.gpu.race.VARIANTS``, to draw these alone.
    """
    from course import figures

    drawn = 0
    for record in records(folder):
        if (fig := picture(record, variants)) is None:
            continue
        drawn += 1
        tests = [result.get("outcome") for result in results(record, "tests").values()]
        raced = [row for row in rows(record) if variants is None or row["variant"] in variants]
        ratios = [row["ratio"][1] for row in raced]
        figures.show(
            fig, alt=f"Times of a step of torch and of adamlib on {machine(record)}, with their predictions.",
            see=f"torch's time / adamlib's: {min(ratios):.2f} to {max(ratios):.2f} over {len(raced)} races; "
                f"of {len(tests)} tests on the GPU {tests.count('passed')} passed.",
        )
    if not drawn:
        print(NOTHING)


def show_blocks(folder: pathlib.Path = RECORDED) -> None:
    """Say how often the tape's verdict was CUDA's, and name the blocks where it was not; or that nothing is recorded."""
    found = [record for record in records(folder) if results(record, "blocks")]
    for record in found:
        both = {name: (result["cuda"]["verdict"], result["tape"]["verdict"])
                for name, result in results(record, "blocks").items()
                if "verdict" in result.get("cuda", {}) and "verdict" in result.get("tape", {})}  # fmt: skip
        print(f"{machine(record)}: the same verdict for {sum(a == b for a, b in both.values())} of {len(both)} blocks")
        for name, (cuda, tape) in both.items():
            if cuda != tape:
                print(f"  {cuda} by CUDA, {tape} by the tape: {name}")
    if not found:
        print(NOTHING)
