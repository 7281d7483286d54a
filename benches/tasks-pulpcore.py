"""pulpcore's side of benches/tasks, run in `pulpcore-manager shell`: its own dummy task, dispatched as its API does.

Two workers. `started` stands for the grant: pulpcore has none.
"""
import os, time
from django_guid import set_guid
from pulpcore.app.models import Task
from pulpcore.tasking.tasks import dispatch

DUMMY = "pulpcore.app.tasks.test.dummy_task"
tasks, rounds, output = int(os.environ["TASKS"]), int(os.environ["ROUNDS"]), os.environ["OUTPUT"]
set_guid("bench")


def micros(t):
    return int(t * 1_000_000)


def run(what, count):
    Task.objects.filter(name=DUMMY).delete()
    time.sleep(1)
    begun, seen = {}, {}
    for n in range(count):
        at = time.time()
        id = dispatch(DUMMY, exclusive_resources=["bench:one" if what == "one" else f"bench:{n}"]).pk
        begun[id] = micros(at)
        while what == "paced" and id not in seen:
            if Task.objects.filter(pk=id).values_list("state", flat=True)[0] == "completed":
                seen[id] = micros(time.time())
            else:
                time.sleep(0.001)
    while Task.objects.filter(name=DUMMY).exclude(state="completed").exists():
        time.sleep(0.25)
    with open(f"{output}/pulpcore.{what}", "a") as file:
        for id, created, started, finished in Task.objects.filter(name=DUMMY).values_list(
                "pk", "pulp_created", "started_at", "finished_at"):
            times = [micros(t.timestamp()) for t in (created, created, started, finished)]
            print(begun[id], *times, seen.get(id, times[-1]), file=file)


for _ in range(rounds):
    run("distinct", tasks)
    run("one", tasks // 3)
    run("paced", 50)
