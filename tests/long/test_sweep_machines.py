"""Sweeps over machines by their command, on a server that counts: workers and driver are killed, the same command
resumes, and nothing that was answered is asked for again."""

from __future__ import annotations

import csv
import json

import pytest
from api_servers import ApiServers
from served import serving_app
from sweep_clusters import CONCURRENCY, command, fake_slurm, kill, parent, points, ray_cluster, run, start, wait

pytestmark = pytest.mark.long


def asked(servers):
    return [json.dumps(body, sort_keys=True) for body in servers.bodies]


def check_end(done, servers, workdir, interrupted):
    """Every point has a result; only requests in flight at a kill, of ``interrupted`` points, came twice."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not servers.problems
    rows = list(csv.DictReader((workdir / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 8 and not any(row["error"] for row in rows)
    bodies = asked(servers)
    print(f"{len(bodies)} requests, {len(bodies) - len(set(bodies))} of them for the second time")
    assert len(bodies) - len(set(bodies)) <= interrupted * CONCURRENCY
    assert f"of which {len(set(bodies)):,} were paid for" in " ".join(done.stdout.split())


def test_on_ray_a_killed_worker_is_replaced_and_a_killed_driver_resumes(tmp_path):
    servers = ApiServers()
    with serving_app(servers.app) as address, ray_cluster(cpus=4, port=6391) as variables:
        arguments = command(address, tmp_path, "--executor=ray")
        driver = start(arguments, variables)
        wait(lambda: len(points(tmp_path)) == 4 and len(servers.bodies) > 100, driver)
        victim, name = next(iter(points(tmp_path).items()))
        kill(parent(victim))  # Ray's worker: the point ends with it, and Ray begins it again after the others
        wait(lambda: any(other != victim and same == name for other, same in points(tmp_path).items()), driver)
        driver.kill()
        driver.wait()
        done = run(arguments, variables)
        check_end(done, servers, tmp_path, 1 + 4)
        paid = len(servers.bodies)
        assert run(arguments, variables).returncode == 0 and len(servers.bodies) == paid


def test_a_slurm_array_goes_on_without_its_driver_which_waits_for_it_again(tmp_path):
    servers, workdir = ApiServers(), tmp_path / "sweep"
    variables = fake_slurm(tmp_path / "slurm")
    with serving_app(servers.app) as address:
        arguments = command(address, workdir, "--executor=slurm", "--jobs=2")
        driver = start(arguments, variables)
        wait(lambda: len(points(workdir)) == 2 and len(servers.bodies) > 100, driver)
        driver.kill()
        driver.wait()
        kill(next(iter(points(workdir))))  # a task that failed goes into another array, beside the first
        check_end(run(arguments, variables), servers, workdir, 1)
    submitted = [path.name for path in (tmp_path / "slurm").glob("*.left")]
    assert sorted(submitted) == ["1.left", "2.left"]
