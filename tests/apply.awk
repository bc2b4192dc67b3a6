# Applies a unified diff: awk -f tests/apply.awk CHANGE.patch FILE >CHANGED. As patch(1), which not every system has, but
# each line has to be just where the diff says.
FNR == NR { diff[++count] = $0; next }
{ line[FNR] = $0; last = FNR }
END {
    at = 1
    for (i = 3; i <= count; i++) {
        kind = substr(diff[i], 1, 1)
        text = substr(diff[i], 2)
        if (kind == "@") {
            split(diff[i], words, /[ ,-]+/)
            while (at < words[2]) print line[at++]
        } else if (kind == "+") {
            print text
        } else if (text != line[at]) {
            print "line " at " is not as the change expects it: " line[at] >"/dev/stderr"
            exit 1
        } else {
            if (kind == " ") print text
            at++
        }
    }
    while (at <= last) print line[at++]
}
