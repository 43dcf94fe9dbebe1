"""What an ordinary program does with docker-py, against the daemon at DOCKER_HOST. Arguments: the reference to pull."""
import io
import sys
import tarfile

import docker
from docker.errors import APIError, ImageNotFound, NotFound

reference = sys.argv[1]
client = docker.from_env(timeout=60)
assert client.ping() is True
version = client.version()
assert version["ApiVersion"] and version["Os"] == "linux", version
assert client.info()["Driver"] == "overlay2"

repository, tag = reference.rsplit(":", 1)
lines = list(client.api.pull(repository, tag=tag, stream=True, decode=True))
assert any("Pull complete" in line.get("status", "") for line in lines), lines
assert any(line.get("status", "").startswith("Status: Downloaded newer image") for line in lines), lines[-1]
image = client.images.get(reference)
assert reference in image.tags, image.tags
assert image.tag("mine", "v1") is True
assert {"mine:v1", reference} <= {name for found in client.images.list() for name in found.tags}

output = client.containers.run("mine:v1", ["echo", "from docker-py"], network_mode="none", remove=True)
assert output == b"from docker-py\n", output
try:
    client.containers.run("mine:v1", ["sh", "-c", "echo bad >&2; exit 3"], network_mode="none", remove=True)
    raise AssertionError("an exit code was not reported")
except docker.errors.ContainerError as error:
    assert error.exit_status == 3 and b"bad" in error.stderr, error

box = client.containers.run("mine:v1", ["sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done"],
                            name="box", network_mode="none", labels={"k": "v"}, detach=True)
for line in box.logs(stream=True, follow=True):
    assert line == b"up\n", line
    break
box.reload()
assert box.status == "running" and box.labels["k"] == "v", box.attrs
assert [found.name for found in client.containers.list(filters={"label": "k=v"})] == ["box"]
try:
    box.remove()
    raise AssertionError("a running container was removed")
except APIError as error:
    assert error.status_code == 409, error
box.stop(timeout=10)
assert box.wait()["StatusCode"] == 4
archive = io.BytesIO(b"".join(box.export()))
assert "bin/busybox" in tarfile.open(fileobj=archive).getnames()
box.remove()
for call, kind in ((lambda: client.containers.get("box"), NotFound), (lambda: client.images.get("absent:v9"), ImageNotFound)):
    try:
        call()
        raise AssertionError("what is not there was found")
    except kind:
        pass

client.images.remove(reference)
client.images.remove("mine:v1")
assert client.images.list() == []
print("docker-py", docker.__version__, "is content")
