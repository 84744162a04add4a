"""The file of records that were left out, whatever its messages hold."""

from vicha_hf.data.read_report import AnnotationReport, RejectedRecord, RejectsFile


def test_ends_of_lines_that_only_unicode_knows(tmp_path):
    rejects = RejectsFile(tmp_path / "rejected.jsonl")
    odd = RejectedRecord("a\u2028b.json, record 0", "empty", "one\x85two\x0cthree")
    rejects.add(odd)
    rejects.add(odd)
    report = AnnotationReport()
    report.reject("c.json, record 1", "empty", "four\u2029five")
    assert rejects.counts() == {"empty": 1}
    assert rejects.joined_with(report).count("\n") == 2
