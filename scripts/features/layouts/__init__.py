"""How other tools store features: a file for each tool, which finds its slides in a folder and reads one of them.

Other files use ``recognition.recognise`` (whose folder is it) and ``foreign`` (what all of them give).
"""
