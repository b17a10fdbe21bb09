"What a program tries to reach: it runs under strace, which notes each connection and name look-up of each process."

import ast
import ipaddress
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from housemlops import NO_TELEMETRY

# With seccomp-bpf only these calls stop a process, so that a run takes hardly longer. `?`: not on every machine.
CALLS = "execve,?fork,?vfork,?clone,?clone3,connect,sendto,sendmsg,sendmmsg"
STRACE = [
    "strace",
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-s",
    "256",
    "-e",
    "signal=none",
    "-e",
]
DNS = 53
RESOLVED = (
    "/run/systemd/resolve/"  # sockets of systemd-resolved, which asks other machines
)

CALL = re.compile(r"(\d+) +(\w+)\((.*)")
STARTED = re.compile(r"(\d+) +(?:<\.\.\. )?(?:clone3?|v?fork)\b.* = (\d+)$")
ADDRESS = re.compile(r'sa_family=AF_INET6?, sin6?_port=htons\((\d+)\).*?"([\da-f.:]+)"')
TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')

# Where one of these is set, some packages send nothing, and a test of what they send proves nothing.
CI = (
    "APPVEYOR",
    "BITBUCKET_",
    "BUILDKITE",
    "CI",
    "CODEBUILD_",
    "GITHUB_",
    "GITLAB_",
    "JENKINS_",
    "PYTEST_",
    "TEAMCITY_",
    "TF_BUILD",
    "TRAVIS",
)


def plain_environment() -> dict[str, str]:
    "The environment without what this package and a test run put there"
    return {
        name: value
        for name, value in os.environ.items()
        if name not in NO_TELEMETRY and not name.startswith(CI)
    }


@cache
def can_trace() -> bool:
    "Whether strace is installed, and may trace here"
    if not shutil.which("strace"):
        return False
    command = [*STRACE, f"trace={CALLS}", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


def traced(command: list, log: Path) -> list:
    "A command that runs another one, and writes to a file what that tries to reach"
    return [*STRACE, f"trace={CALLS}", "-o", log, *command]


@dataclass
class Attempt:
    "A connection or a name look-up"

    program: str
    target: str  # address and port, or the name

    def __str__(self) -> str:
        return f"{self.program}: {self.target}"


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified  # 0.0.0.0 is this machine, too


def name_asked_for(packet: bytes) -> str:
    "The name in a DNS query"
    labels, rest = [], packet[12:]
    while rest and rest[0]:
        labels.append(rest[1 : rest[0] + 1].decode(errors="replace"))
        rest = rest[rest[0] + 1 :]
    return ".".join(labels)


def target_of(call: str, arguments: str) -> str:
    "Where a call leads; empty when that is this machine or nothing new"
    if RESOLVED in arguments:
        return "name look-up by systemd-resolved"
    if not (found := ADDRESS.search(arguments)):
        return ""
    port, address = int(found[1]), found[2]
    if port == DNS:
        return f"name look-up at {address}"
    return "" if is_loopback(address) else f"{address} port {port}"


def attempts(log: Path) -> list[Attempt]:
    "What the processes of a log tried to reach beyond this machine, and which names they looked up"
    programs, parents, found, asking = {}, {}, [], {}
    for line in log.read_text(errors="replace").splitlines():
        if started := STARTED.match(line):
            parents[started[2]] = started[1]
        if not (parts := CALL.match(line)):
            continue
        task, call, arguments = parts.groups()
        if call == "execve":
            if " = -1 " not in arguments:
                programs[task] = " ".join(TEXT.findall(arguments)[1:])
        elif target := target_of(call, arguments):
            found.append((task, Attempt("", target)))
            asking[task] = found[-1][1] if "look-up" in target else None
        elif asking.get(task) and (text := TEXT.search(arguments)):
            packet = ast.literal_eval(f'b"{text[1]}"')
            if name := name_asked_for(packet):
                asking[task].target += f" of {name}"
                del asking[task]
    for task, attempt in found:
        while task not in programs and task in parents:  # a thread, or a fork
            task = parents[task]
        attempt.program = programs.get(task, f"process {task}")
    return [attempt for _, attempt in found]
