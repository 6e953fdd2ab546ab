"""The programs run, up, down and status: their options and what they do."""

import argparse
import os
import signal
import sys
import time

from builder.images import build_images
from builder.recipe import all_recipes

from .instance import Instance
from .push import push_binary, push_install_tree
from .qemu import Shape
from .report import TestbedError, say
from .session import NoAnswer, Session
from .state import State, console_tail
from .tools import Tools

BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "POUCH_TESTBED": "1",
}


def main(function):
    """Run a program's function; a TestbedError becomes its message and status 125, which no command's own is."""
    try:
        sys.exit(function(sys.argv[1:]))
    except TestbedError as error:
        say(f"error: {error}")
        sys.exit(125)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _parser(description, **options):
    parser = argparse.ArgumentParser(description=description, **options)
    parser.add_argument("--instance", metavar="NAME", default=os.environ.get("POUCH_TESTBED_INSTANCE"),
                        help="name of the testbed (default: $POUCH_TESTBED_INSTANCE, or derived from the options below)")
    return parser


def _add_shape(parser):
    parser.add_argument("--cpus", type=int, metavar="N", help="virtual CPUs (default: 1; they share one thread)")
    parser.add_argument("--memory", metavar="M", help="memory, in MiB or with a suffix, such as 8G (default: 6G)")
    parser.add_argument("--icount", action="store_true", help="count time in executed instructions, for benchmarks")
    parser.add_argument("--older", action="store_true",
                        help="use a host with the kernel of Debian bookworm and cgroup v1")
    parser.add_argument("--image", metavar="NAME", choices=[recipe.name for recipe in all_recipes()], default="",
                        help="use a small host with only this test image and no engines")


def _shape(options):
    cpus = options.cpus or Shape.cpus
    text = (options.memory or "6G").upper()
    unit = {"G": 1024, "M": 1}.get(text[-1])
    try:
        memory = int(text[:-1]) * unit if unit else int(text)
    except ValueError:
        raise TestbedError(f"--memory {options.memory}: not a size; give MiB, or a number with a suffix, such as 8G") from None
    return Shape(cpus, memory, options.icount, options.older, options.image)


def _instance(options, shape):
    if options.instance:
        return Instance(options.instance)
    if shape == Shape():
        return Instance("default")
    return Instance("icount" if shape == Shape(cpus=1, icount=True) else shape.label())


def _state(shape):
    return State(Tools(), shape)


def ensure_up(instance, shape):
    """The instance, running and of today's making; starts it, or starts it again, if it is not."""
    state = _state(shape)
    if instance.is_up() and instance.facts["key"] == state.key:
        return
    state.folder()  # Long work comes before the lock on the instance.
    with instance.starting():
        if instance.is_up():
            if instance.facts["key"] == state.key:
                return
            if instance.facts["shape"] != shape.label():
                raise TestbedError(f"testbed {instance.name} is up as {instance.facts['shape']}, not {shape.label()}; "
                                   f"use another --instance, or `tests/testbed/down {instance.name}` first")
            if instance.in_use():
                say(f"testbed {instance.name} was made from other sources, but is in use: using it as it is")
                return
            say(f"testbed {instance.name} was made from other sources; starting it again")
        instance.bring_up(state)


def up(arguments):
    """Start a testbed and leave it running."""
    parser = _parser("Start a testbed and leave it running.")
    _add_shape(parser)
    options = parser.parse_args(arguments)
    shape = _shape(options)
    instance = _instance(options, shape)
    ensure_up(instance, shape)
    say(f"{instance.name} is up")
    return 0


def down(arguments):
    """Stop testbeds."""
    parser = argparse.ArgumentParser(description="Stop all testbeds, or those named, and remove their disks.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    for instance in [Instance(name) for name in options.names] or Instance.all():
        with instance.starting():
            instance.take_down()
    return 0


def status(arguments):
    """List the testbeds."""
    argparse.ArgumentParser(description="List the testbeds that are up.").parse_args(arguments)
    for instance in Instance.all():
        if instance.is_up():
            facts = instance.facts
            print(f"{instance.name}\tup {time.time() - facts['up']:.0f} s\t{facts['shape']}\tpid {instance.process().pid}\t"
                  f"{'in use' if instance.in_use() else 'idle'}\t{instance.folder}")
        else:
            print(f"{instance.name}\t{'starting' if instance.process() else 'dead'}\t\t\t\t{instance.folder}")
    return 0


def images(arguments):
    """Build the test images."""
    argparse.ArgumentParser(description="Build the test images and print the folder that holds them.").parse_args(arguments)
    print(build_images(Tools()))
    return 0


def run(arguments):
    """Run a command in a testbed."""
    parser = _parser("Run a command as root in a testbed, starting one if none is up.",
                     usage="run [OPTION]… [--] COMMAND [ARGUMENT]…")
    _add_shape(parser)
    parser.add_argument("--fresh", action="store_true", help="boot a new testbed for this command only")
    parser.add_argument("--env", action="append", default=[], metavar="K=V",
                        help="set an environment variable for the command; can be repeated")
    parser.add_argument("--cwd", default="/root", metavar="FOLDER", help="working directory of the command (default: /root)")
    parser.add_argument("--tty", action="store_true", default=None, help="give the command a terminal")
    parser.add_argument("--no-tty", action="store_false", dest="tty",
                        help="do not give it a terminal, even if standard input is one")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    environment = dict(BASE_ENVIRONMENT)
    for setting in options.env:
        name, equals, value = setting.partition("=")
        environment[name] = value if equals else os.environ.get(name, "")
    terminal = os.isatty(0) and os.isatty(1) if options.tty is None else options.tty
    return run_command(options, _shape(options), command, environment, options.cwd, terminal)


def run_command(options, shape, command, environment, cwd, terminal, binary=None):
    """Run `command` in the testbed that `options` and `shape` ask for, and return its status.

    `binary` is a program of the host that the testbed needs for it.
    """

    def begin(testbed):
        push_install_tree(testbed)
        if binary:
            push_binary(testbed, binary)
        # A test binary starts in a folder of the host, which the testbed does not have: an empty one has to do.
        return Session(testbed.facts["port"], testbed.facts["token"], command, environment, cwd, terminal,
                       make_cwd=binary is not None, wake=not shape.icount)

    instance = _instance(options, shape)
    if options.fresh or (shape.icount and not instance.is_up()):
        return _run_alone(Instance.for_one_command(instance.name), shape, options.fresh, begin)
    with instance.used():
        ensure_up(instance, shape)
        try:
            session = begin(instance)
        except NoAnswer:
            if instance.is_up() and instance.answers():
                raise
            say(f"testbed {instance.name} gives no answer; starting it again")
            with instance.starting():
                instance.bring_up(_state(shape))
            session = begin(instance)
        try:
            return session.run()
        except NoAnswer as error:
            # What the test host's kernel said last is gone once the next command starts another.
            raise TestbedError(f"{error}\n{console_tail(instance.folder)}") from None


def _run_alone(instance, shape, fresh, begin):
    """Run in a testbed that is made for this command and ends with it, whichever way this process ends."""
    with instance.used():
        state = _state(shape)
        try:
            with instance.starting():
                instance.bring_up(state, fresh=fresh, dies_with_us=True)
            return begin(instance).run()
        finally:
            with instance.starting():
                instance.take_down()
            instance.forget()
