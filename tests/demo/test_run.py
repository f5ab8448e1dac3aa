from scripts.demo.run import metrics_table


def test_the_table_has_a_line_for_each_output_and_one_for_knowing_the_frequencies():
    metrics = {
        "global": {"micro_f1": {"value": 0.9, "ci95": [0.85, 0.95]}, "roc_auc": {"value": None, "ci95": [None, None]}},
        "5x": {"micro_f1": {"value": 0.7, "ci95": [0.6, 0.81]}, "roc_auc": {"value": 0.5, "ci95": [0.4, 0.6]}},
    }
    lines = metrics_table(metrics, {"micro_f1": 0.25, "roc_auc": 0.5}).splitlines()
    assert [line.split() for line in lines if not line.startswith("-")] == [
        ["output", "micro_f1", "roc_auc"],
        ["global", "0.900", "[0.850,", "0.950]", "-"],
        ["5x", "0.700", "[0.600,", "0.810]", "0.500", "[0.400,", "0.600]"],
        ["class", "frequencies", "0.250", "0.500"],
    ]
