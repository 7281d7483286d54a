"""Celery's side of benches/tasks: the application, and, run as a script, its load.

Acknowledged late, persistent, publishes confirmed, results in PostgreSQL. Nothing here keeps two tasks of one resource
apart: Celery has no such thing, so its bursts are compared with both of ours.
usage: tasks_celery.py TASKS ROUNDS OUTPUT
"""
import datetime, os, sys, time
from celery import Celery

app = Celery("tasks_celery", broker=os.environ["CELERY_BROKER"], backend=os.environ["CELERY_BACKEND"])
app.conf.update(
    task_acks_late=True, worker_prefetch_multiplier=4, task_default_delivery_mode=2, task_default_queue="celery_bench",
    broker_transport_options={"confirm_publish": True}, result_expires=None, task_serializer="json",
    worker_send_task_events=False, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False,
    database_engine_options={"pool_size": 2, "max_overflow": 2})


@app.task
def noop():
    return None


def micros(t):
    return int(t * 1_000_000)


def main():
    import psycopg2
    tasks, rounds, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    noop.delay().get(timeout=60)
    db = psycopg2.connect(os.environ["PSYCOPG"])
    db.autocommit = True
    rows = db.cursor()

    def done():
        rows.execute("select task_id, date_done from celery_taskmeta where status = 'SUCCESS'")
        utc = datetime.timezone.utc
        return {id: micros(at.replace(tzinfo=utc).timestamp()) for id, at in rows.fetchall()}

    for _ in range(rounds):
        for what in "distinct", "paced":
            rows.execute("truncate celery_taskmeta")
            time.sleep(1)
            begun, seen = {}, {}
            with app.connection_for_write() as connection, connection.channel() as channel, app.amqp.Producer(channel) as producer:
                for _ in range(tasks if what == "distinct" else 200):
                    at = time.time()
                    id = noop.apply_async(producer=producer).id
                    begun[id] = micros(at)
                    while what == "paced" and id not in seen:
                        rows.execute("select 1 from celery_taskmeta where task_id = %s", (id,))
                        if rows.fetchone():
                            seen[id] = micros(time.time())
                        else:
                            time.sleep(0.001)
            while len(finished := done()) < len(begun):
                time.sleep(0.2)
            with open(f"{output}/celery.{what}", "a") as file:
                for id, at in begun.items():
                    # There is no grant.
                    print(at, at, at, at, finished[id], seen.get(id, finished[id]), file=file)


if __name__ == "__main__":
    main()
