"""SuperLink's register follows the folder of admitted keys."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.node_pb2 import NodeInfo

from iedn.errors import IdentityError
from server.register import follow


class Register:
    """A register in memory that, like SuperLink's, never takes a key twice."""

    def __init__(self):
        self.found = []

    def nodes(self):
        return self.found

    def register(self, site, public_key):
        assert public_key not in [n.public_key for n in self.found]
        number = len(self.found) + 1
        node = NodeInfo(node_id=number, name=site, public_key=public_key, status="registered")
        self.found.append(node)

    def unregister(self, node_id):
        self.found[node_id - 1].status = "unregistered"

    def names(self):
        return [n.name for n in self.found if n.status != "unregistered"]


def admit(folder, site, key=None):
    key = key or ec.generate_private_key(ec.SECP384R1()).public_key()
    (folder / "admitted").mkdir(exist_ok=True)
    content = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (folder / "admitted" / f"{site}.pub").write_bytes(content)
    return key


def test_admitted_sites_are_registered_once(tmp_path):
    register = Register()
    key = admit(tmp_path, "site-a")
    admit(tmp_path, "site-b")
    follow(tmp_path, register)
    follow(tmp_path, register)
    assert register.names() == ["site-a", "site-b"] or register.names() == ["site-b", "site-a"]
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert pem in [n.public_key for n in register.found]


def test_revoked_site_is_shut_out_and_its_key_stays_so(tmp_path):
    register = Register()
    key = admit(tmp_path, "site-a")
    follow(tmp_path, register)
    (tmp_path / "admitted" / "site-a.pub").unlink()
    follow(tmp_path, register)
    assert register.names() == []
    admit(tmp_path, "site-a", key)
    follow(tmp_path, register)
    assert register.names() == []
    admit(tmp_path, "site-a")
    follow(tmp_path, register)
    assert register.names() == ["site-a"]


def test_key_that_is_replaced_shuts_the_old_one_out(tmp_path):
    register = Register()
    admit(tmp_path, "site-a")
    follow(tmp_path, register)
    admit(tmp_path, "site-a")
    follow(tmp_path, register)
    assert [n.status for n in register.found] == ["unregistered", "registered"]


def test_file_that_is_no_key_changes_nothing(tmp_path):
    register = Register()
    admit(tmp_path, "site-a")
    follow(tmp_path, register)
    (tmp_path / "admitted" / "site-b.pub").write_text("not a key")
    (tmp_path / "admitted" / "site-a.pub").unlink()
    with pytest.raises(IdentityError, match=r"site-b\.pub"):
        follow(tmp_path, register)
    assert register.names() == ["site-a"]
