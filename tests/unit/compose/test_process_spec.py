from __future__ import annotations

import pytest

from pyrune.compose.image_config import ImageConfig
from pyrune.compose.process_spec import DEFAULT_PATH, ProcessSpec, of_arguments, of_container, of_image
from pyrune.compose.root import Folder, Leaf, RootTree, regular
from pyrune.eif.format import Architecture
from pyrune.errors import EifError

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nme:x:1000:100::/home/me:/bin/sh\nnohome:x:7:8::\n"
    f"odd:x:²:0::\nlong:x:{'9' * 5000}:0::\n"
)
GROUP = "root:x:0:\nusers:x:100:\naudio:x:29:me,other\nwheel:x:10:other,me\n"


@pytest.fixture
def tree() -> RootTree:
    tree = RootTree("image")
    tree.put((b"etc", b"passwd"), regular(PASSWD.encode()))
    tree.put((b"etc", b"group"), regular(GROUP.encode()))
    return tree


def config(
    *, entrypoint: tuple[str, ...] = (), cmd: tuple[str, ...] = (), env: tuple[str, ...] = (), user: str = ""
) -> ImageConfig:
    return ImageConfig(Architecture.X86_64, (), entrypoint, cmd, env, "", user)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "arguments", "args"),
    [
        (("/e",), ("c",), (), ("/e", "c")),
        (("/e",), ("c",), ("x", "y z"), ("/e", "x", "y z")),
        ((), ("/c", "1"), (), ("/c", "1")),
        ((), ("/c", "1"), ("/x",), ("/x",)),
        (("/e",), (), (), ("/e",)),
        ((), (), (), ()),
    ],
)
def test_entrypoint_and_arguments_or_cmd(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], arguments: tuple[str, ...], args: tuple[str, ...], tree: RootTree
) -> None:
    assert of_image(config(entrypoint=entrypoint, cmd=cmd), tree, arguments).args == args


def test_the_environment_is_in_dockers_order(tree: RootTree) -> None:
    env = ("A=1", "PATH=/only", "B=", "A=2", "HOSTNAME=mine")
    assert of_image(config(env=env), tree, ()).env == ("PATH=/only", "HOSTNAME=mine", "A=2", "B=", "HOME=/root")
    assert of_arguments(("/x",), tree).env == (f"PATH={DEFAULT_PATH}", "HOSTNAME=enclave", "HOME=/root")


def test_home_is_the_images_or_that_of_its_passwd(tree: RootTree) -> None:
    def home(env: tuple[str, ...], user: str) -> list[str]:
        return [item for item in of_image(config(env=env, user=user), tree, ()).env if item.startswith("HOME=")]

    assert home(("HOME=/h",), "me") == ["HOME=/h"]
    assert home(("HOME=",), "me") == ["HOME=/home/me"]
    assert home((), "nohome") == ["HOME=/"]
    assert home((), "4711") == ["HOME=/"]
    assert of_arguments(("/x",), RootTree("empty")).env[-1] == "HOME=/"


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups"),
    [
        ("", 0, 0, ()),
        ("me", 1000, 100, (29, 10)),
        ("1000", 1000, 100, (29, 10)),
        ("me:audio", 1000, 29, ()),
        ("me:4711", 1000, 4711, ()),
        ("4711", 4711, 0, ()),
        ("4711:users", 4711, 100, ()),
        (":users", 0, 100, ()),
    ],
)
def test_users_are_those_of_the_image(user: str, uid: int, gid: int, groups: tuple[int, ...], tree: RootTree) -> None:
    spec = of_image(config(user=user), tree, ())
    assert (spec.uid, spec.gid, spec.additional_gids) == (uid, gid, groups)


@pytest.mark.parametrize(
    "user", ["nobody", "odd", "long", "²", "me:nobody", "-1", "99999999999", "4294967295", "1 000"]
)
def test_a_user_that_the_image_does_not_know_is_refused(user: str, tree: RootTree) -> None:
    with pytest.raises(EifError, match=r"image: no (user|group) of the user .* is in its /etc/(passwd|group)"):
        of_image(config(user=user), tree, ())


def test_a_passwd_that_is_a_link_leads_to_a_file_of_the_image() -> None:
    tree = RootTree("image")
    tree.put((b"etc", b"passwd"), Leaf(0o120777, target=b"../../../run/passwd"))
    tree.put((b"run", b"passwd"), regular(b"me:x:5:6::/h"))
    assert of_image(config(user="me"), tree, ()).uid == 5
    tree.put((b"run", b"passwd"), Folder())
    with pytest.raises(EifError, match="no user"):
        of_image(config(user="me"), tree, ())


def test_a_containers_own_name_is_not_measured(tree: RootTree) -> None:
    spec = ProcessSpec(("/x",), ("PATH=/", "HOSTNAME=0123456789ab", "X=0123456789ab"))
    assert of_container(spec, "0123456789ab", tree).env == (
        "PATH=/",
        "HOSTNAME=enclave",
        "X=0123456789ab",
        "HOME=/root",
    )
    assert of_container(spec, "other", tree).env == (*spec.env, "HOME=/root")
    named = ProcessSpec(("/x",), ("HOSTNAME=name",))
    assert of_container(named, "name", tree).env == ("HOSTNAME=name", "HOME=/root")


def test_no_value_of_the_environment_is_shown(tree: RootTree) -> None:
    assert "secret" not in repr(of_image(config(env=("A=secret",)), tree, ()))
    assert "secret" not in repr(config(env=("A=secret",)))
