"""What a benchmark's report holds and how it is read: the machine, the table, the picture."""

import contextlib
import os
import pathlib
import platform
import subprocess

import numpy
import torch


def hardware(device: str) -> dict:
    """Names and sizes of what the benchmark runs on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), model)
    found = {"cpu": model, "vectors": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count()}
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
        found |= {"multiprocessors": gpu.multi_processor_count, "l2_bytes": gpu.L2_cache_size}
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i=0")
    return found


def software() -> dict:
    """Versions of what the benchmark runs on."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    here = str(pathlib.Path(__file__).parent)
    return {
        "adamlib_commit": _output("git", "-C", here, "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version,
        "numpy": numpy.__version__,
        "system": platform.system(),
    }


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def table(report: dict) -> str:
    """The report as text: one block per parameter set, one line per variant."""
    lines = [_headline(report)]
    for name in dict.fromkeys(row["set"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["set"] == name]
        limit = sorted(row["limit_seconds"] for row in rows)[len(rows) // 2]
        rate = sorted(row["limit_bytes_per_second"] for row in rows)[len(rows) // 2]
        lines += [
            "",
            f"{name}: {rows[0]['tensors']} tensors, {rows[0]['parameters']:,} parameters. "
            f"28 bytes each at {rate / 1e9:.1f} GB/s: {limit * 1e3:.3f} ms",
            f"  {'':28}{'torch':>9}{'ours':>10}   {'torch / ours':<20}{'% of limit':>13}"
            f"{'temporary B/param':>20}   bits",
        ]
        for row in rows:
            noise = row["variant"].startswith("noise")
            torchs, ours = row["torch_seconds"][1], row["our_seconds"][1]
            temporary = [row[f"{who}_temporary_bytes"] / row["parameters"] for who in ("torch", "our")]
            lines.append(
                f"  {_label(row):28}{torchs * 1e3:9.3f}{ours * 1e3:10.3f} ms"
                + " {1:6.2f} [{0:.2f}, {2:.2f}]".format(*row["ratio"])
                + f"{100 * row['limit_seconds'] / torchs:9.0f} → {100 * row['limit_seconds'] / ours:3.0f}"
                # a replayed graph allocates nothing: its temporaries lie in the graph's own memory
                + ("{:13.2f} → {:4.2f}".format(*temporary) if row["mode"] == "eager" else " " * 20)
                + f"   {'torch twice' if noise else 'same' if row['same_bits'] else 'differ'}"
                + (" *" if row["disturbed"] else "")
            )
    if any(row["disturbed"] for row in report["rows"]):
        lines += ["", "* too few quiet rounds: other processes used the cores; repeat when they do not"]
    lines += [f"failed: {f['set']} · {f['variant']} · {f['mode']}: {f['error']}" for f in report["failed"]]
    return "\n".join(lines)


def picture(report: dict):
    """The ratios as a matplotlib figure: a panel per set, a dot with quartiles per variant, noise in grey."""
    import matplotlib.pyplot as plt

    from course import figures

    figures.use_style()
    names = list(dict.fromkeys(row["set"] for row in report["rows"]))
    heights = [sum(row["set"] == name for row in report["rows"]) for name in names]
    fig, axes = plt.subplots(
        len(names), figsize=(9, 1.5 + 0.42 * sum(heights) + 0.5 * len(names)), height_ratios=heights,
        sharex=True, squeeze=False,
    )  # fmt: skip
    for name, ax in zip(names, axes[:, 0]):
        rows = [row for row in report["rows"] if row["set"] == name]
        for y, row in enumerate(reversed(rows)):
            low, middle, high = row["ratio"]
            color = figures.COLORS["grey" if row["variant"].startswith("noise") else "blue"]
            ax.plot([low, high], [y, y], color=color, linestyle="-")
            ax.plot(middle, y, "o", color=color, markersize=8)
            ax.annotate(f"{middle:.2f}", (high, y), xytext=(6, 0), textcoords="offset points", va="center",
                        color=color)  # fmt: skip
        ax.axvline(1, color=figures.COLORS["black"], linewidth=1, linestyle="-")
        ax.set_yticks(range(len(rows)), [_label(row) for row in reversed(rows)])
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.set_title(f"{name}, {rows[0]['parameters'] / 1e6:.3g} M parameters", fontsize=14)
        ax.margins(x=0.12)
    axes[-1, 0].set_xlabel("torch's time / adamlib's time (right of 1: adamlib is faster)")
    headline = _headline(report).replace(" · ", "\n", 1)
    fig.suptitle(headline, fontsize=12, fontweight="normal", x=0.01, ha="left")
    return fig


def _label(row: dict) -> str:
    return row["variant"] if row["mode"] == "eager" else f"{row['variant']}, {row['mode']}"


def _headline(report: dict) -> str:
    """The machine, the versions and the day, on one line."""
    machine, versions, settings = report["hardware"], report["software"], report["settings"]
    device = machine.get("gpu") or f"{machine['cpu']} ({machine['cores']} cores, {settings['threads']} used)"
    return (
        f"{device} · torch {versions['torch']}, Python {versions['python']} · {report['date']} · "
        f"{settings['rounds']} rounds"
    )
