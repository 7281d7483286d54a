"""pulpcore with pulp-container as a peer of benches/sync: installed by pip once, below target/bench-peers, and started over
a PostgreSQL of its own. Its API, two workers, no cache: as its documentation has a small installation."""

import base64
import datetime
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

PACKAGES = ["pulpcore==3.123.*", "pulp-container==2.30.*"]
PASSWORD = "a password for benchmarks"
SETTINGS = """\
SECRET_KEY = "for benchmarks only, not secret: 0123456789abcdef"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": "{port}",
    "NAME": "pulp", "USER": "postgres"}}}}
DEPLOY_ROOT = "{folder}"
MEDIA_ROOT = "{folder}/media"
STATIC_ROOT = "{folder}/assets"
WORKING_DIRECTORY = "{folder}/tmp"
FILE_UPLOAD_TEMP_DIR = "{folder}/tmp"
DB_ENCRYPTION_KEY = "{folder}/db.key"
CONTENT_ORIGIN = "http://127.0.0.1:1"
ANALYTICS = False
CACHE_ENABLED = False
TOKEN_AUTH_DISABLED = True
"""


def install(peers, log):
    """Its folder of programs; none, with a line that says why, if it can't be installed."""
    place = os.path.join(peers, "pulp-container")
    complete = os.path.join(place, "complete")
    if not os.path.exists(complete):
        os.makedirs(peers, exist_ok=True)
        for command in ([sys.executable, "-m", "venv", place],
                        [os.path.join(place, "bin/pip"), "install", "-q", "--disable-pip-version-check", *PACKAGES]):
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                print(f"pulp-container could not be installed and is left out: see {log.name}")
                return None
        open(complete, "w").close()
    return os.path.join(place, "bin")


class PulpContainer:
    """A running one. Its figures are from `pulp_created` to `finished_at` of its own task: nobody asks meanwhile more
    often than twice a second, which would cost it time."""

    def __init__(self, work, programs, log, free_port):
        self.processes, self.log, self.folder = [], log, os.path.join(work, "pulp-container")
        os.chmod(work, 0o755)
        for name in ("media", "tmp", "assets"):
            os.makedirs(os.path.join(self.folder, name))
        with open(os.path.join(self.folder, "db.key"), "wb") as f:
            f.write(base64.b64encode(os.urandom(32)))
        port, self.port = free_port(), free_port()
        with open(os.path.join(self.folder, "settings.py"), "w") as f:
            f.write(SETTINGS.format(port=port, folder=self.folder))
        self.env = {**os.environ, "PULP_SETTINGS": f.name}
        try:
            self.start_postgres(port)
            manager = os.path.join(programs, "pulpcore-manager")
            for arguments in (["migrate", "--noinput"], ["reset-admin-password", "--password", PASSWORD]):
                subprocess.run([manager, *arguments], env=self.env, stdout=log, stderr=log, check=True)
            self.start([os.path.join(programs, "pulpcore-api"), "--bind", f"127.0.0.1:{self.port}", "--workers", "1"])
            for _ in range(2):
                self.start([os.path.join(programs, "pulpcore-worker")])
            self.wait_until(lambda: len(self.call("GET", "/pulp/api/v3/status/")["online_workers"]) == 2)
            versions = {v["component"]: v["version"] for v in self.call("GET", "/pulp/api/v3/status/")["versions"]}
            self.version = versions["container"]
        except BaseException:
            self.stop()
            raise

    def start(self, command, **how):
        how = {"env": self.env, **how}
        process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True, **how)
        self.processes.append(process)

    def start_postgres(self, port):
        data = os.path.join(self.folder, "postgres")
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        how = {}
        os.mkdir(data, 0o700)
        if os.getuid() == 0:
            # It doesn't run as root.
            shutil.chown(data, "postgres", "postgres")
            how = {"user": "postgres", "group": "postgres", "extra_groups": []}
        make = [f"{programs}/initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8"]
        subprocess.run(make, stdout=self.log, stderr=self.log, check=True, **how)
        # Durable: fsync and synchronous_commit stay on.
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "256MB"}
        options = [option for key, value in settings.items() for option in ("-c", f"{key}={value}")]
        self.start([f"{programs}/postgres", "-D", data, *options], **how)

        def answers():
            with socket.create_connection(("127.0.0.1", port), 1):
                make = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "pulp"]
                return subprocess.run(make, stdout=self.log, stderr=self.log).returncode == 0

        self.wait_until(answers)

    def wait_until(self, happens):
        for _ in range(600):
            try:
                if happens():
                    return
            except (OSError, http.client.HTTPException, urllib.error.URLError):
                pass
            time.sleep(0.2)
        sys.exit(f"pulp-container doesn't come up: see {self.log.name}")

    def call(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as response:
            text = response.read()
        return json.loads(text) if text else None

    def seconds(self, href):
        """Waits for a task; its time from the call to its end, by its own record."""
        while (task := self.call("GET", href))["state"] not in ("completed", "failed", "canceled"):
            time.sleep(0.5)
        if task["state"] != "completed":
            sys.exit(f"pulp-container's task failed: {task['error']}")
        at = datetime.datetime.fromisoformat
        return (at(task["finished_at"]) - at(task["pulp_created"])).total_seconds()

    def sync(self, upstream):
        """Seconds of a cold sync and of one of what is unchanged; nothing is left of them."""
        make = {"name": "bench", "url": f"http://{upstream}", "upstream_name": "bench", "policy": "immediate"}
        remote = self.call("POST", "/pulp/api/v3/remotes/container/container/", make)["pulp_href"]
        repository = self.call("POST", "/pulp/api/v3/repositories/container/container/", {"name": "bench"})["pulp_href"]
        subprocess.run(["sync"], check=True)
        took = [self.seconds(self.call("POST", repository + "sync/", {"remote": remote})["task"]) for _ in range(2)]
        for made in (repository, remote):
            self.seconds(self.call("DELETE", made)["task"])
        clean = {"orphan_protection_time": 0}
        self.seconds(self.call("POST", "/pulp/api/v3/orphans/cleanup/", clean)["task"])
        return took

    def stop(self):
        # PostgreSQL last: it is the first of them.
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGINT if "postgres" in process.args[0] else signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
