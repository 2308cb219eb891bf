/* Runs a pair by MXNet's C predict API; float or INT8, the calls are the same.
 *
 *   MX=$(python -c 'import importlib.util as u; print(u.find_spec("mxnet").submodule_search_locations[0])')
 *   cc -O2 examples/serve/predict.c -I"$MX/include" -L"$MX" -lmxnet -Wl,-rpath,"$MX" -o predict
 *   ./predict output/resnet_digits-int8 1 3 48 48
 */
#include <stdbool.h>
#include <stdint.h>

#include <mxnet/c_predict_api.h>
#include <stdio.h>
#include <stdlib.h>

static void check(int code) {
  if (code) {
    fprintf(stderr, "%s\n", MXGetLastError());
    exit(1);
  }
}

static char *content(const char *prefix, const char *end, long *size) {
  char path[4096];
  snprintf(path, sizeof path, "%s%s", prefix, end);
  FILE *file = fopen(path, "rb");
  if (!file) {
    fprintf(stderr, "%s is missing: run examples/resnet/quantize.py first\n", path);
    exit(1);
  }
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  char *text = malloc(*size + 1);
  if (!text || fread(text, 1, *size, file) != (size_t)*size) exit(1);
  text[*size] = 0;
  fclose(file);
  return text;
}

int main(int count, char **words) {
  if (count != 6) {
    fprintf(stderr, "usage: %s PREFIX BATCH CHANNELS HEIGHT WIDTH\n", words[0]);
    return 2;
  }
  uint32_t shape[4], ends[2] = {0, 4}, values = 1;
  for (int i = 0; i < 4; i++) values *= shape[i] = (uint32_t)atoi(words[2 + i]);
  long symbol_size, params_size;
  char *symbol = content(words[1], "-symbol.json", &symbol_size);
  char *params = content(words[1], "-0000.params", &params_size);
  const char *names[] = {"data"};
  PredictorHandle net;
  check(MXPredCreate(symbol, params, (int)params_size, 1, 0, 1, names, ends, shape, &net));
  float *fed = calloc(values, sizeof *fed);
  check(MXPredSetInput(net, "data", fed, values));
  check(MXPredForward(net));
  uint32_t *sides, axes, wanted = 1;
  check(MXPredGetOutputShape(net, 0, &sides, &axes));
  for (uint32_t i = 0; i < axes; i++) wanted *= sides[i];
  float *out = malloc(wanted * sizeof *out);
  check(MXPredGetOutput(net, 0, out, wanted));
  for (uint32_t i = 0; i < wanted && i < 10; i++) printf("%.5f%c", out[i], i == 9 || i + 1 == wanted ? '\n' : ' ');
  check(MXPredFree(net));
  free(fed), free(out), free(symbol), free(params);
  return 0;
}
