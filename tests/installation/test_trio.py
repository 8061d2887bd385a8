"""What the doctor decides, over made-up machines."""

import pytest

from lightning_mvrec.installation.trio import Found, choose_device, choose_trio, diagnose, trio_commands

FITTING = {
    "torch": "2.13.0+cpu",
    "fbgemm-gpu-cpu": "1.8.0",
    "torchrec": "1.8.0",
    "lightning": "2.6.6",
    "pytorch-lightning": "2.6.6",
}
ON_GPU = {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "torchrec": "1.8.0", "lightning": "2.6.6"}


def laptop(changed=None, **found):
    """A machine without a driver whose packages fit, but for what is changed; None removes a package."""
    versions = {name: version for name, version in {**FITTING, **(changed or {})}.items() if version is not None}
    return Found(python="py", versions=versions, **{"fbgemm_files": "cpu", **found})


def workstation(versions=None, **found):
    """A machine with one GPU and the CUDA builds."""
    base = {"torch_cuda": "13.0", "fbgemm_files": "cuda", "driver": True, "gpus": 1}
    return Found(python="py", versions=dict(ON_GPU if versions is None else versions), **{**base, **found})


def mended(found):
    """The command lines of the only problem."""
    (problem,) = diagnose(found)
    return [" ".join(line) for line in problem.mend]


@pytest.mark.parametrize("found", [laptop(), workstation()], ids=["cpu", "cuda"])
def test_nothing_is_said_and_nothing_is_installed_where_everything_fits(found):
    assert diagnose(found) == []
    assert trio_commands(found, choose_device(found), choose_trio(found)) == []


def test_the_newer_trio_fits_as_well():
    newer = laptop({"torch": "2.14.1", "fbgemm-gpu-cpu": "1.9.0", "torchrec": "1.9.2"})
    assert choose_trio(newer) == "2.14"
    assert diagnose(newer) == []


def test_a_bare_machine_without_driver_gets_the_cpu_trio_and_torchrec_without_its_dependencies():
    bare = Found(python="py")
    assert [" ".join(line) for line in trio_commands(bare, choose_device(bare), choose_trio(bare))] == [
        "py -m pip install torch==2.13.0",
        "py -m pip install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0",
        "py -m pip install --no-deps torchrec==1.8.0",
    ]


def test_a_bare_machine_with_a_gpu_gets_the_cuda_trio_and_no_local_cpu_build_of_torch():
    bare = Found(python="py", driver=True, gpus=2)
    assert [" ".join(line) for line in trio_commands(bare, choose_device(bare), choose_trio(bare))] == [
        "py -m pip install torch===2.13.0",
        "py -m pip install --no-deps --force-reinstall fbgemm-gpu==1.8.0",
        "py -m pip install --no-deps torchrec==1.8.0",
    ]


def test_a_driver_without_a_gpu_means_cpu():
    assert choose_device(Found(driver=True, gpus=0)) == "cpu"
    assert choose_device(Found(driver=True, gpus=1)) == "cuda"


def test_torch_is_looked_for_on_the_users_own_index_too():
    bare = Found(python="py")
    first = trio_commands(bare, "cuda", "2.13", index="INDEX")[0]
    assert first == ["py", "-m", "pip", "install", "--extra-index-url", "INDEX", "torch==2.13.0"]


def test_the_parts_install_without_torchrec_where_it_does_not_exist():
    mac = Found(python="py", linux=False)
    assert trio_commands(mac, choose_device(mac), "2.13") == [["py", "-m", "pip", "install", "torch==2.13.0"]]
    assert diagnose(Found(linux=False, versions={"torch": "2.13.0", "lightning": "2.6.6"})) == []


def test_an_installed_cuda_build_of_torch_is_kept_on_a_machine_without_gpu():
    commands = trio_commands(laptop({"torch": "2.13.0"}, torch_cuda="13.0"), "cpu", "2.13")
    assert commands == []


def test_the_cuda_fbgemm_that_torchrec_pulls_in_is_swapped_for_the_cpu_build():
    pulled = laptop({"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"}, fbgemm_files="cuda")
    assert mended(pulled) == [
        "py -m pip uninstall -y fbgemm-gpu",
        "py -m pip install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0",
    ]
    assert "no NVIDIA driver (libnvidia-ml.so.1)" in diagnose(pulled)[0].text


@pytest.mark.parametrize("files", ["cpu", "cuda"])
def test_both_builds_of_fbgemm_are_removed_before_the_right_one_is_written_again(files):
    both = laptop({"fbgemm-gpu": "1.8.0"}, driver=True, fbgemm_files=files)
    assert "overwrite each other" in diagnose(both)[0].text
    assert mended(both) == [
        "py -m pip uninstall -y fbgemm-gpu-cpu fbgemm-gpu",
        "py -m pip install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0",
    ]


def test_files_left_over_from_the_other_build_are_seen():
    assert "holds files of the cuda build" in diagnose(laptop(fbgemm_files="cuda"))[0].text
    assert mended(laptop(fbgemm_files="cuda"))[-1].endswith("--force-reinstall fbgemm-gpu-cpu==1.8.0")


@pytest.mark.parametrize(
    ("changed", "said", "command"),
    [
        ({"torchrec": "1.9.2"}, "torchrec 1.9.2", "py -m pip install --no-deps torchrec==1.8.0"),
        ({"fbgemm-gpu-cpu": "1.7.0"}, "fbgemm-gpu-cpu 1.7.0", "fbgemm-gpu-cpu==1.8.0"),
        ({"torch": "2.14.1"}, "fbgemm-gpu-cpu 1.8.0 does not fit torch 2.14", "torchrec==1.9.2"),
        ({"torch": "2.15.0"}, "torch 2.15.0", "py -m pip install torch==2.13.0"),
        ({"torch": None}, "torch is not installed", "py -m pip install torch==2.13.0"),
        ({"torchrec": None}, "torchrec is not installed", "py -m pip install --no-deps torchrec==1.8.0"),
        ({"fbgemm-gpu-cpu": None}, "neither fbgemm-gpu nor", "fbgemm-gpu-cpu==1.8.0"),
    ],
)
def test_a_mixed_trio_is_mended_to_the_one_of_its_torch(changed, said, command):
    found = laptop(changed, fbgemm_files="cpu")
    (problem,) = diagnose(found)
    assert problem.broken
    assert said in problem.text
    assert any(line.endswith(command) for line in mended(found)), mended(found)


@pytest.mark.parametrize("torch", [None, "2.12.0", "2.13.0", "2.14.1", "2.15.0"])
@pytest.mark.parametrize("fbgemm", [{}, {"fbgemm-gpu": "1.9.0"}, {"fbgemm-gpu-cpu": "1.8.0"}, {"fbgemm-gpu": "1.8.0"}])
@pytest.mark.parametrize("torchrec", [None, "1.8.0", "1.9.2"])
@pytest.mark.parametrize("gpus", [0, 1])
def test_what_mends_a_state_leaves_nothing_to_mend(torch, fbgemm, torchrec, gpus):
    have = {"torch": torch, "torchrec": torchrec, "lightning": "2.6.6", **fbgemm}
    found = Found(versions={k: v for k, v in have.items() if v}, torch_cuda="13.0", driver=gpus > 0, gpus=gpus)
    device, trio = choose_device(found), choose_trio(found)
    after = dict(found.versions)
    for command in trio_commands(found, device, trio):
        verb, packages = command[3], [word for word in command[4:] if not word.startswith("-")]
        for package in packages:
            name, _, version = package.replace("===", "==").partition("==")
            if verb == "uninstall":
                after.pop(name)
            else:
                after[name] = version
    now = Found(versions=after, torch_cuda="13.0", driver=gpus > 0, gpus=gpus, fbgemm_files=device)
    assert diagnose(now) == []
    assert trio_commands(now, device, trio) == []


def test_a_cuda_fbgemm_on_a_cpu_torch_gets_the_cuda_torch():
    mixed = workstation({**ON_GPU, "torch": "2.13.0+cpu"}, torch_cuda="")
    assert "torch 2.13.0+cpu is a CPU build" in diagnose(mixed)[0].text
    assert mended(mixed) == ["py -m pip uninstall -y torch", "py -m pip install torch===2.13.0"]


def test_a_cpu_fbgemm_under_a_torch_that_uses_the_gpu_is_broken():
    found = workstation({**FITTING, "torch": "2.13.0"}, fbgemm_files="cpu")
    assert diagnose(found)[0].broken
    assert mended(found)[-1].endswith("--force-reinstall fbgemm-gpu==1.8.0")


def test_a_whole_cpu_installation_beside_a_gpu_is_advice_only():
    (problem,) = diagnose(workstation(FITTING, torch_cuda="", fbgemm_files="cpu"))
    assert not problem.broken
    assert "1 GPU(s)" in problem.text


def test_a_torch_that_sees_no_gpu_points_to_the_driver():
    (problem,) = diagnose(workstation(facts={"cuda_available": False}))
    assert problem.broken
    assert problem.mend == [["nvidia-smi"]]


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_a_malicious_lightning_is_removed_before_another_is_fetched(version):
    found = laptop({"lightning": version, "pytorch-lightning": version})
    assert "malicious" in diagnose(found)[0].text
    assert mended(found) == [
        "py -m pip uninstall -y lightning",
        "py -m pip install --no-cache-dir lightning>=2.6.1,!=2.6.2,!=2.6.3",
    ]


def test_two_lightnings_of_different_versions_are_named():
    (problem,) = diagnose(laptop({"pytorch-lightning": "2.5.0"}))
    assert not problem.broken
    assert "pytorch-lightning 2.5.0 lies beside lightning 2.6.6" in problem.text
    assert problem.mend == [["py", "-m", "pip", "install", "pytorch-lightning==2.6.6"]]


def test_an_unsupported_python_is_named():
    assert "Python 3.14 is not supported" in diagnose(laptop(python_version=(3, 14)))[0].text


def test_a_missing_module_is_named_with_its_package():
    found = laptop(imports={"torch": "", "torchrec": "ModuleNotFoundError: No module named 'pyre_extensions'"})
    assert mended(found) == ["py -m pip install pyre-extensions"]


def test_an_import_that_crashes_is_written_again_in_the_same_version():
    found = laptop(imports={"torch": "", "kernel": "killed by signal 11"})
    assert "a training step of a fused table fails: killed by signal 11" in diagnose(found)[0].text
    assert mended(found) == ["py -m pip install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0"]


def test_a_broken_import_is_not_listed_beside_its_cause():
    (problem,) = diagnose(laptop({"torchrec": "1.9.2"}, imports={"torchrec": "ImportError: x"}))
    assert "does not fit" in problem.text
