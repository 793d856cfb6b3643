/* Writes files as C string literals to stdout.
 *
 *     embed templates DIRECTORY FILE...   qn_embedded_templates[] of jit/embedded.h, each path
 *                                         relative to DIRECTORY
 *     embed text SYMBOL FILE              const char SYMBOL[] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *path)
{
    perror(path);
    exit(1);
}

/* One literal a line of the file, so that the result can be read and compared. */
static size_t say_text(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t bytes = 0;
    int is_open = 0, c;

    if (!file)
        fail(path);
    for (; (c = getc(file)) != EOF; bytes++) {
        if (!is_open)
            fputs("\n        \"", stdout);
        is_open = c != '\n';
        if (c == '\n')
            fputs("\\n\"", stdout);
        else if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c >= ' ' && c < 127 && c != '?')
            putchar(c);
        else
            printf("\\%03o", (unsigned)c);
    }
    if (is_open)
        putchar('"');
    if (!bytes)
        fputs(" \"\"", stdout);
    if (ferror(file))
        fail(path);
    fclose(file);
    return bytes;
}

static void say_templates(const char *directory, char **files, int count)
{
    size_t prefix = strlen(directory) + 1;

    puts(
        "#include \"jit/embedded.h\"\n\nconst struct qn_embedded_file qn_embedded_templates[] = {");
    for (int i = 0; i < count; i++) {
        printf("    { \"%s\",", files[i] + prefix);
        size_t bytes = say_text(files[i]);
        printf(", %zu },\n", bytes);
    }
    printf("    { 0, 0, 0 }\n};\nconst int qn_embedded_template_count = %d;\n", count);
}

int main(int argc, char **argv)
{
    if (argc >= 3 && !strcmp(argv[1], "templates")) {
        say_templates(argv[2], argv + 3, argc - 3);
    } else if (argc == 4 && !strcmp(argv[1], "text")) {
        printf("extern const char %s[];\nconst char %s[] =", argv[2], argv[2]);
        say_text(argv[3]);
        puts(";");
    } else {
        fputs("usage: embed templates DIRECTORY FILE... | embed text SYMBOL FILE\n", stderr);
        return 2;
    }
    return fclose(stdout) != 0;
}
