"""What benches/tasks measured, in words.

Each file holds a line a task: when it was asked for, when the answer came, created, granted, finished, seen finished;
in microseconds since 1970.
"""
import os, sys


def read(path):
    return [tuple(map(int, line.split())) for line in open(path)] if os.path.exists(path) else []


def rate(tasks):
    return len(tasks) / ((max(t[4] for t in tasks) - min(t[0] for t in tasks)) / 1e6)


def at(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


def rounds(tasks):
    """A file holds one round after the other; between two is a pause of a second or more."""
    tasks, found = sorted(tasks), []
    last = None
    for task in tasks:
        if last is None or task[0] - last > 900_000:
            found.append([])
        found[-1].append(task)
        last = max(task[4], last or 0)
    return found


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


if sys.argv[1] == "rate":
    print(int(median(rate(r) for r in rounds(read(sys.argv[2]))) / 2))
    sys.exit()

NAMES = {"distinct": "burst on distinct resources", "one": "burst on one resource", "paced": "one at a time", "half": "half load"}
rates = {}
print(f"{'':40} {'tasks':>6} {'tasks/s':>8} {'grant p50':>10} {'p99':>9} {'whole p50':>10} {'p99':>9}  ms")
for subject in "pulp", "standalone", "celery", "pulpcore":
    for what, name in NAMES.items():
        tasks = read(f"{sys.argv[2]}/{subject}.{what}")
        if not tasks:
            continue
        rates[subject, what] = median(rate(r) for r in rounds(tasks))
        grant = [(t[3] - t[0]) / 1e3 for t in tasks]
        # One at a time, what counts is when a client saw it.
        whole = [((t[5] if what == "paced" else t[4]) - t[0]) / 1e3 for t in tasks]
        shown = ["", ""] if subject == "celery" else [f"{at(grant, p):.1f}" for p in (0.5, 0.99)]
        print(f"{subject + ': ' + name:40} {len(tasks):6} {rates[subject, what]:8.0f} {shown[0]:>10} {shown[1]:>9} "
              f"{at(whole, 0.5):10.1f} {at(whole, 0.99):9.1f}")
for what, peer, over in ("distinct", "celery", "distinct"), ("one", "celery", "distinct"), ("distinct", "pulpcore", "distinct"), ("one", "pulpcore", "one"):
    if ("pulp", what) in rates and (peer, over) in rates:
        print(f"  {NAMES[what]}, times as fast as {peer}: {rates['pulp', what] / rates[peer, over]:.1f}")
