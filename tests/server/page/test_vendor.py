"""Files of others are as their authors published them, but for what vendor/README.md names."""

import hashlib

import pytest

from alignkit_server.page.routes import FILES

VENDOR = FILES / "vendor"
CHECKSUMS = {
    "hooks.mjs": "13518e8899847145604866b14612f994ed70d894a423b64694b6e764d7b956c9",
    "htm.mjs": "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4",
    "preact.mjs": "225d7a773766e6fb2cfcc45274fe41d2059f5782f3f2c4569aa5132a2d3a2902",
    "swagger-ui/swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui/swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
    "uplot.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uplot.mjs": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
}


def test_every_file_is_noted() -> None:
    code = {
        str(path.relative_to(VENDOR))
        for path in VENDOR.glob("**/*")
        if path.suffix in {".js", ".mjs", ".css"}
    }
    assert code == set(CHECKSUMS)


@pytest.mark.parametrize("name", CHECKSUMS)
def test_a_file_is_what_was_noted(name: str) -> None:
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == CHECKSUMS[name]


@pytest.mark.parametrize("package", ["preact", "htm", "uplot", "swagger-ui"])
def test_a_package_has_its_licence_beside_it(package: str) -> None:
    assert (VENDOR / "licenses" / f"{package}.txt").read_text(encoding="utf-8")
    assert package in (VENDOR / "README.md").read_text(encoding="utf-8")
