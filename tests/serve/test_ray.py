"""Servers that Ray starts behind a proxy: one is killed, all sessions answer, it comes back."""

import signal
import time

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")]
pytest.importorskip("ray")
from cluster import SERVER, Cluster, Process, check_a_loss  # noqa: E402

NAMESPACE = "jaxmem"


@pytest.fixture
def ray(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_worker_niceness", "0")
    context = ray.init(num_cpus=2, include_dashboard=False, namespace=NAMESPACE)
    monkeypatch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
    yield ray
    ray.shutdown()


def test_sessions_of_a_killed_server_go_on(ray, model, tmp_path):
    folder = tmp_path / "saves"
    more = ("--port", "0", "--ray", "2", "--", *SERVER, "--saves", str(folder))
    proxy = Process("proxy", *more)
    cluster = Cluster(proxy.address, model, folder)
    try:

        def kill(name):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=False)
            time.sleep(2.0)  # it saves no more

        check_a_loss(cluster, kill)
        cluster.wait(lambda: cluster.states() == {"ok": 2})  # it is there again, at another port
        before = {name: one["stats"]["seconds"] for name, one in cluster.listed().items()}
        assert proxy.end(signal.SIGINT) == 0
        for name, seconds in before.items():  # all were saved at the end
            assert cluster.saved(name) >= seconds
    finally:
        cluster.close()
        if proxy.process.poll() is None:
            proxy.process.kill()
            proxy.process.communicate()
