"""Charsets as browsers know them: which one is used, and that every label decodes as the standard says."""

from __future__ import annotations

import pytest

from crawler.text.body import text_of
from crawler.text.charset import decode, encoding_of
from crawler.text.media_type import media_type

# Every label of the WHATWG Encoding Standard, by encoding, with bytes and what they are in it. The bytes are such that
# Python's codec of the same name, or a neighbouring encoding, would decode them otherwise where there is a difference.
TABLE: dict[str, tuple[str, bytes, str]] = {
    "utf-8": (
        "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
        b"\xe2\x82\xac\xed\xa0\x80\xf0\x9f\x98",
        "€\ufffd\ufffd\ufffd\ufffd",
    ),
    "ibm866": ("866 cp866 csibm866 ibm866", b"\x8f\xf0\xfd", "ПЁ¤"),
    "iso-8859-2": (
        "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
        b"\xb1\xa9\x80",
        "ąŠ\x80",
    ),
    "iso-8859-3": (
        "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
        b"\xa1\xe6\xa5",
        "Ħĉ\ufffd",
    ),
    "iso-8859-4": (
        "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
        b"\xa2\xbf",
        "ĸŋ",
    ),
    "iso-8859-5": (
        "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
        b"\xbf\xf0",
        "П№",
    ),
    "iso-8859-6": (
        (
            "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i "
            "iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987"
        ),
        b"\xc8\xa1",
        "ب\ufffd",
    ),
    "iso-8859-7": (
        (
            "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
            "iso_8859-7:1987 sun_eu_greek"
        ),
        b"\xe1\xa4\xd2",
        "α€\ufffd",
    ),
    "iso-8859-8": (
        (
            "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 iso_8859-8 "
            "iso_8859-8:1988 visual"
        ),
        b"\xe0\xa1",
        "א\ufffd",
    ),
    "iso-8859-8-i": ("csiso88598i iso-8859-8-i logical", b"\xe0\xfe", "א\u200f"),
    "iso-8859-10": ("csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6", b"\xa1\xff", "Ąĸ"),
    "iso-8859-13": ("iso-8859-13 iso8859-13 iso885913", b"\xa1\xff", "”’"),
    "iso-8859-14": ("iso-8859-14 iso8859-14 iso885914", b"\xa1\xd0", "ḂŴ"),
    "iso-8859-15": ("csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9", b"\xa4\xbd", "€œ"),
    "iso-8859-16": ("iso-8859-16", b"\xa4\xaa", "€Ș"),
    "koi8-r": ("cskoi8r koi koi8 koi8-r koi8_r", b"\xf0\xb4", "П╢"),
    "koi8-u": ("koi8-ru koi8-u", b"\xf0\xae\xa4", "Пўє"),  # Python has ╝ for AE
    "macintosh": ("csmacintosh mac macintosh x-mac-roman", b"\x8e\xdb", "é€"),
    "windows-874": (
        "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
        b"\xa1\x80\x81\xdb",
        "ก€\x81\ufffd",
    ),
    "windows-1250": ("cp1250 windows-1250 x-cp1250", b"\x8a\x81", "Š\x81"),
    "windows-1251": ("cp1251 windows-1251 x-cp1251", b"\xcf\x98", "П\x98"),
    "windows-1252": (
        (
            "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 "
            "iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252"
        ),
        b"\xe9\x80\x81\x8d",
        "é€\x81\x8d",
    ),
    "windows-1253": ("cp1253 windows-1253 x-cp1253", b"\xe1\x81\xaa\xd2", "α\x81\ufffd\ufffd"),
    "windows-1254": (
        (
            "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
            "windows-1254 x-cp1254"
        ),
        b"\xfd\x80\x81",
        "ı€\x81",
    ),
    "windows-1255": ("cp1255 windows-1255 x-cp1255", b"\xe0\xca\x81\xd9", "א\u05ba\x81\ufffd"),  # Python lacks CA
    "windows-1256": ("cp1256 windows-1256 x-cp1256", b"\xc8\x81", "بپ"),
    "windows-1257": ("cp1257 windows-1257 x-cp1257", b"\xe0\x81\xa1", "ą\x81\ufffd"),
    "windows-1258": ("cp1258 windows-1258 x-cp1258", b"\xfe\xcc\x8a", "₫\u0300\x8a"),
    "x-mac-cyrillic": (
        "x-mac-cyrillic x-mac-ukrainian",
        b"\x8f\xff\xa2\xb6",
        "П€Ґґ",
    ),  # Python's mac_cyrillic has ∂ for B6
    "gbk": (
        "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk",
        b"\xc4\xe3\x80\xa2\xe3\x81\x30\x81\x30\xff",
        "你€€\x80\ufffd",
    ),
    "gb18030": ("gb18030", b"\x81\x35\xf4\x37\xa8\xbc\x80", "\ue7c7ḿ€"),
    "big5": ("big5 big5-hkscs cn-big5 csbig5 x-x-big5", b"\xa7\x41\x87\x40\x88\x62\xa3\xe1\xfc", "你䏰Ê̄€\ufffd"),
    "euc-jp": ("cseucpkdfmtjapanese euc-jp x-euc-jp", b"\xa4\xa2\xad\xa1\x8f\xb0\xa1\x8e\xb1", "あ①丂ｱ"),
    "iso-2022-jp": ("csiso2022jp iso-2022-jp", b'\x1b$B$"-!\x1b(J\\~\x1b(I1\x1b(Ba', "あ①¥‾ｱa"),
    "shift_jis": (
        "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
        b"\x82\xa0\x87\x40\x5c\x7e\x81\x60\xfa\x40\xf0\x40\x80\xa0",
        "あ①\\~～ⅰ\ue000\x80\ufffd",
    ),
    "euc-kr": (
        "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 windows-949",
        b"\xb0\xa1\x8c\x63\xff",
        "가똠\ufffd",
    ),
    # Unsupported, as in browsers: the whole text is one U+FFFD, and the bytes are kept as content.
    "replacement": ("csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement", b"abc\xff", "\ufffd"),
    "utf-16be": ("unicodefffe utf-16be", b"\x20\xac\xd8\x3d\xde\x00\xd8\x00", "€😀\ufffd"),
    "utf-16le": (
        "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
        b"\xac\x20\x3d\xd8\x00\xde\x00\xd8\x41",
        "€😀\ufffd",
    ),
    "x-user-defined": ("x-user-defined", b"a\x80\xff", "a\uf780\uf7ff"),
}
LABELS = [(label, encoding) for encoding, (labels, _, _) in TABLE.items() for label in labels.split()]


def test_the_table_has_every_label_of_the_standard() -> None:
    assert (len(TABLE), len(LABELS)) == (40, 228)


@pytest.mark.parametrize(("label", "encoding"), LABELS)
def test_every_label_decodes_as_the_standard_says(label: str, encoding: str) -> None:
    _, body, text = TABLE[encoding]
    for written in (label, label.upper(), f'"{label}"', f" {label} "):
        found = text_of(f"text/plain; charset={written}", body)
        assert (found.text, found.encoding, found.replaced) == (
            text,
            encoding,
            text.count("\ufffd"),
        )


@pytest.mark.parametrize(
    "label", ["utf8mb4", "none", "utf-7", "binary", "idna", "punycode", "base64", "rot13", "é", "a\0b", "utf-32"]
)
def test_what_is_no_label_of_the_standard_decides_nothing(label: str) -> None:
    assert encoding_of(label) is None
    assert text_of(f"text/plain; charset={label}", "Zoë".encode()).summary == "utf-8"
    assert text_of(f"text/plain; charset={label}", b"Zo\xeb") == ("Zoë", "windows-1252", 0)


@pytest.mark.parametrize(
    ("content_type", "essence", "encoding"),
    [
        (None, "", None),
        ("text/html", "text/html", None),
        ("text/HTML;Charset=UTF8", "text/html", "utf-8"),
        ('text/html; charset="greek"', "text/html", "iso-8859-7"),
        ('text/html; charset="greek', "text/html", "iso-8859-7"),
        ("text/html; a=b; charset=greek; c=d", "text/html", "iso-8859-7"),
        ("text/html ; charset=greek", "text/html", "iso-8859-7"),
        ("text/html; charset=", "text/html", None),
        ("text/html; charset= ;charset=greek", "text/html", "iso-8859-7"),
        ('text/html; charset="greek"latin2', "text/html", "iso-8859-7"),
        ('text/html; a="b;charset=latin2"; charset=greek', "text/html", "iso-8859-7"),
        ("text/html; charset=greek; charset=latin2", "text/html", "iso-8859-7"),
        # several header lines, or a server that joins them: the last that is valid, with the charset of the same type
        ("text/html; charset=utf-8, text/html", "text/html", "utf-8"),
        ("text/html; charset=utf-8, text/html; charset=greek", "text/html", "iso-8859-7"),
        ("text/plain; charset=utf-8, text/html", "text/html", None),
        ("text/html; charset=greek, nonsense", "text/html", "iso-8859-7"),
        ("text/html; charset=greek, */*", "text/html", "iso-8859-7"),
        ('text/html; a="x,y"; charset=greek', "text/html", "iso-8859-7"),
        ("charset=utf-8", "", None),
        ("html", "", None),
        ("text/", "", None),
        ("text/html extra", "", None),
    ],
)
def test_a_content_type_is_read_as_browsers_read_it(
    content_type: str | None, essence: str, encoding: str | None
) -> None:
    assert media_type(content_type)[:2] == (essence, encoding)


GREEK = b"\xe1"


@pytest.mark.parametrize(
    ("content_type", "body", "encoding"),
    [
        # a byte order mark beats everything
        ("text/html; charset=greek", b"\xef\xbb\xbf<meta charset=latin2>", "utf-8"),
        ("text/html; charset=greek", "\ufeff<p>".encode("utf-16-le"), "utf-16le"),
        ("text/plain", "\ufeffa".encode("utf-16-be"), "utf-16be"),
        # then the header
        ("text/html; charset=greek", b"<meta charset=latin2>" + GREEK, "iso-8859-7"),
        ("text/xml; charset=greek", b"<?xml version='1.0' encoding='latin2'?>" + GREEK, "iso-8859-7"),
        ("text/html; charset=utf-8", b"<meta charset=latin2>" + GREEK, "utf-8, 1 replaced"),
        # then what HTML declares, in the first 1,024 bytes
        ("text/html", b"<meta charset=greek>" + GREEK, "iso-8859-7"),
        ("text/html; charset=utf8mb4", b"<META CHARSET='greek'/>" + GREEK, "iso-8859-7"),
        ("text/html", b'<meta http-equiv="Content-Type" content="text/html; charset=greek">' + GREEK, "iso-8859-7"),
        ("text/html", b'<meta content="text/html; charset=greek" http-equiv=content-type>' + GREEK, "iso-8859-7"),
        ("text/html", b"<meta charset=nonsense><meta charset=greek>" + GREEK, "iso-8859-7"),
        ("text/html", b"<meta charset=windows-1252>\xc3\xa9", "windows-1252"),
        ("text/html", b"<meta charset=utf-16>\xc3\xa9", "utf-8"),
        ("text/html", b"<meta charset=x-user-defined>\xc3\xa9", "windows-1252"),
        ("text/html", b"<meta charset=hz-gb-2312>a", "replacement, 1 replaced"),
        ("text/html", b"<!-- <meta charset=greek> -->\xc3\xa9", "utf-8"),
        ("text/html", b"<a title='<meta charset=greek>'>\xc3\xa9", "utf-8"),
        ("text/html", b'<meta content="text/html; charset=greek">\xc3\xa9', "utf-8"),
        ("text/html", b" " * 1024 + b"<meta charset=greek>\xc3\xa9", "utf-8"),
        ("text/html", b" " * 1024 + b"<meta charset=greek>" + GREEK, "iso-8859-7"),
        ("text/html", b" " * 1000 + b"<meta charset=greek>" + GREEK, "iso-8859-7"),
        ("text/html", b"<?xml version='1.0' encoding='greek'?><html>" + GREEK, "iso-8859-7"),
        ("text/plain", b"<meta charset=greek>\xc3\xa9", "utf-8"),
        ("text/xml", b"<meta charset=greek>\xc3\xa9", "utf-8"),
        # or XML
        ("text/xml", b"<?xml version='1.0' encoding='greek'?>" + GREEK, "iso-8859-7"),
        (
            "application/rss+xml",
            b'<?xml version="1.0" encoding = "windows-1251" ?>\xcf',
            "windows-1251",
        ),
        ("application/xhtml+xml", b"<?xml version='1.0' encoding='greek'?>" + GREEK, "iso-8859-7"),
        ("text/xml", b"<?xml version='1.0' encoding='utf-16'?>\xc3\xa9", "utf-8"),
        ("text/xml", b"<?xml version='1.0' encoding='nonsense'?>\xc3\xa9", "utf-8"),
        ("text/xml", "<?xml version='1.0'?><é/>".encode("utf-16-le"), "utf-16le"),
        ("text/xml", "<?xml version='1.0'?><é/>".encode("utf-16-be"), "utf-16be"),
        # then UTF-8, if it is that
        ("text/html", b"<p>\xc3\xa9", "utf-8"),
        (None, b"\xc3\xa9", "utf-8"),
        # and at last what decodes every byte
        ("text/html", b"<p>\xe9\x81", "windows-1252"),
        ("text/plain", b"caf\xe9", "windows-1252"),
        (None, b"caf\xe9", "windows-1252"),
    ],
)
def test_what_decides(content_type: str | None, body: bytes, encoding: str) -> None:
    assert text_of(content_type, body).summary == encoding


@pytest.mark.parametrize(
    ("encoding", "body", "replaced"),
    [
        ("utf-8", b"a\xffb\xef\xbf\xbdc\xe2\x82", 2),
        ("utf-8", b"\xef\xbf\xbd", 0),
        ("utf-8", b"\xef\xbf\xbd\0\0", 2),
        ("utf-16le", b"\xfd\xff\x00\xd8", 1),
        ("utf-16be", b"\xff\xfd", 0),
        ("gb18030", b"\x84\x31\xa4\x37", 0),
        ("gb18030", b"\x84\x31\xa4\x37\xff", 1),
        ("gbk", b"\x84\x31\xa4\x37\xff", 1),
        ("shift_jis", b"\x80\xa0\xfd", 2),
    ],
)
def test_only_what_could_not_be_decoded_is_counted(encoding: str, body: bytes, replaced: int) -> None:
    assert decode(body, encoding).replaced == replaced
