from fc_operator.clients import nix, registrations
from fc_operator.executors import derivations, nix_arguments
from fc_operator.executors.nix_arguments import Sandbox
from fc_operator.model.ids import DrvPath, StepId, TaskId, new_uuid
from fc_operator.model.tasks import StepOrder
from fc_operator.settings import NixSettings

ORDER = StepOrder(
    step_id=StepId(1),
    attempt=1,
    task_id=TaskId(new_uuid()),
    drv_path=DrvPath("/nix/store/x.drv"),
    name="x",
    system="x86_64-linux",
    timeout_s=10,
    max_silent_s=5,
    log_bytes_max=1000,
)


def call(**more):
    return nix_arguments.realise(
        ORDER,
        nix=NixSettings(substituters=("https://c.example",), trusted_public_keys=("k:1",)),
        **more,
    )


def test_the_call_is_golden():
    assert " ".join(call(sandbox=Sandbox(in_force="Nix", paths=("/bin", "/usr")))) == (
        "nix-store --realise /nix/store/x.drv --log-format internal-json "
        "--option sandbox true --option sandbox-fallback false --option sandbox-paths /bin /usr "
        "--option substituters https://c.example --option trusted-public-keys k:1 "
        "--option timeout 10 --option max-silent-time 5 --option max-build-log-size 1000 "
        "--option max-jobs 1 --option builders  --option keep-going false"
    )


def test_c06_no_call_may_fall_back_from_the_sandbox():
    for in_force in ("Nix", "None"):
        words = call(sandbox=Sandbox(in_force=in_force), check=True, features=("kvm",))
        at = words.index("sandbox-fallback")
        assert words[at + 1] == "false"
        assert "--check" in words
        assert words[words.index("system-features") + 1] == "kvm"


def test_only_what_nix_needs_reaches_its_environment():
    env = {"PATH": "/p", "NIX_REMOTE": "daemon", "FC_ENCRYPTION_KEY": "s", "AWS_SECRET": "s"}
    assert nix.environment(env) == {"PATH": "/p", "NIX_REMOTE": "daemon"}


def test_a_drv_tells_outputs_kind_and_needs():
    need = "/nix/store/a-a.drv"
    text = (
        'Derive([("dev","/nix/store/d","",""),("out","/nix/store/o","","")],'
        f'[("{need}",["out"])],[],"s","/bin/sh",[],[("x","/nix/store/b-b.drv")])'
    )
    facts = derivations.parse(text.encode())
    assert facts.outputs == {"dev": "/nix/store/d", "out": "/nix/store/o"}
    assert not facts.is_fixed_output
    assert facts.needs(DrvPath(need))
    assert not facts.needs(DrvPath("/nix/store/b-b.drv"))
    fixed = derivations.parse(
        b'Derive([("out","/nix/store/o","r:sha256","abcd")],[],[],"s","b",[],[])'
    )
    assert fixed.is_fixed_output
    assert derivations.parse(b"nonsense").outputs == {}


def test_registrations_give_nixs_own_hash_text():
    dump = (
        "/nix/store/x-ok\na50a5ab6d992f5598edd92105059fae9acfc192981e08bd88534c2167e92526a\n96\n"
        "/nix/store/y.drv\n1\n/nix/store/x-ok\n"
    )
    assert registrations.parse_registrations(dump) == {
        "/nix/store/x-ok": ("sha256:0sjjj9z1dhilhpc8pq4154czrb79z9cm044jvn75kxcjv6v5l2m5", 96)
    }
